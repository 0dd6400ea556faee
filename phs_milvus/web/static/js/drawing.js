// Draws the prompts over the picture.

import { $, svg } from "./dom.js";
import { HANDLES, handleAt, radiusIn } from "./shapes.js";
import { onChange, state } from "./state.js";
import { view } from "./view.js";

const drawing = $("drawing");

// What is being drawn or moved, in place of the prompt of that index, and which prompt is selected.
export const draft = { shapes: null, selected: -1, cross: null };

export const shownPrompts = () => draft.shapes ?? state.prompts;

function twice(tag, attributes) {
  return [svg(tag, { ...attributes, class: "under", fill: "none" }), svg(tag, { ...attributes, class: "over" })];
}

function marks(shape, unit) {
  if (shape.type === "box") {
    const [x, y, width, height] = [shape.x0, shape.y0, shape.x1 - shape.x0, shape.y1 - shape.y0];
    return twice("rect", { x, y, width, height });
  }
  if (shape.type === "lasso")
    return twice(shape.open ? "polyline" : "polygon", {
      points: shape.points.map((point) => point.join(",")).join(" "), "stroke-linejoin": "round",
    });
  const at = { cx: shape.x, cy: shape.y };
  return [...twice("circle", { ...at, r: radiusIn(state.picture) }), svg("circle", { ...at, r: 4.5 * unit, class: "dot" })];
}

function handles(box, unit) {
  return HANDLES.map((handle, index) => {
    const [x, y] = handleAt(box, handle);
    const half = 4.5 * unit;
    const mark = svg("rect", {
      x: x - half, y: y - half, width: 2 * half, height: 2 * half, rx: 1.5 * unit, class: "handle", "data-handle": index,
    });
    mark.style.cursor = handle[2];
    return mark;
  });
}

export function draw() {
  if (!state.picture?.width) return; // not known yet
  const { width, height } = state.picture;
  const unit = 1 / view.scale; // one pixel of the screen
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const groups = shownPrompts().map((shape, index) => {
    const selected = index === draft.selected;
    const name = [shape.label === 0 ? "negative" : "", selected ? "selected" : ""].join(" ");
    const group = svg("g", { class: name, "data-shape": shape.type }, ...marks(shape, unit));
    if (selected && shape.type === "box" && !shape.open) group.append(...handles(shape, unit));
    return group;
  });
  if (draft.cross) {
    const { x, y } = draft.cross;
    const arm = 11 * unit;
    groups.push(svg("path", { class: "cross", d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}` }));
  }
  drawing.replaceChildren(...groups);
}

view.onchange = draw;
onChange((what) => {
  if (what === "settings") return;
  draft.shapes = null;
  if (what === "picture") draft.cross = null;
  const last = state.prompts.length - 1;
  draft.selected = what === "picture" || draft.selected > last ? last : draft.selected;
  draw();
});
