// Pointing with a mouse, a pen or fingers: clicks, boxes, lassos, handles, moving, zooming.

import { $ } from "./dom.js";
import { draft, draw } from "./drawing.js";
import { HANDLES, boxOf, covers, handleAt, moved, radiusIn, resized, simplified } from "./shapes.js";
import { setPrompts, state } from "./state.js";
import { view } from "./view.js";

const stage = $("stage");
const DRAG = 5; // pixels of the screen before a click is a drag
const NEAR = { mouse: 8, pen: 10, touch: 22 };

export const tool = () => document.querySelector("input[name=tool]:checked").value;
const takesAway = (event) => $("remove").checked || event.altKey || event.shiftKey;

const pointers = new Map(); // by pointerId: the last event
let drag = null; // {from, kind, ...} while one pointer is down
let pinch = null;

/** What a press at a place begins. */
function begin(event) {
  const from = view.at(event);
  const near = NEAR[event.pointerType] / view.scale;
  if (event.button === 1 || tool() === "move") return { from, kind: "pan" };
  const box = state.prompts[draft.selected];
  if (box?.type === "box") {
    const handle = HANDLES.find((each) => {
      const [x, y] = handleAt(box, each);
      return Math.max(Math.abs(x - from.x), Math.abs(y - from.y)) <= near;
    });
    if (handle) return { from, kind: "resize", handle, index: draft.selected };
  }
  if (tool() === "lasso") return { from, kind: "lasso", points: [[from.x, from.y]] };
  if (takesAway(event)) return { from, kind: "erase", points: [from] };
  // A selected shape is moved from inside; any other begins a box, so that boxes can be drawn within boxes.
  if (box && covers(box, from, near)) return { from, kind: "shift", index: draft.selected };
  return { from, kind: "box" };
}

function replaced(index, shape) {
  return state.prompts.map((each, at) => (at === index ? shape : each));
}

/** The prompts as they would be if the drag ended here; null where it does not change them. */
function outcome(event) {
  const to = view.at(event);
  const { kind, from, index } = drag;
  if (kind === "resize") return replaced(index, resized(state.prompts[index], drag.handle, to));
  if (kind === "shift") return replaced(index, moved(state.prompts[index], to.x - from.x, to.y - from.y, state.picture));
  if (kind === "lasso") {
    for (const each of event.getCoalescedEvents?.() ?? []) {
      const { x, y } = view.at(each);
      drag.points.push([x, y]);
    }
    drag.points.push([to.x, to.y]);
    return [...state.prompts, { type: "lasso", points: drag.points, open: true }];
  }
  if (kind === "erase") {
    const last = drag.points.at(-1);
    if (Math.hypot(to.x - last.x, to.y - last.y) > radiusIn(state.picture)) drag.points.push(to);
    return [...state.prompts, ...drag.points.map(({ x, y }) => ({ type: "point", x, y, label: 0 }))];
  }
  if (kind === "box") return [...state.prompts, boxOf(from, to)];
  return null;
}

function pressed(event) {
  if (!state.picture || event.button === 2 || event.target.closest("button")) return;
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  draft.cross = null;
  if (pointers.size === 2) {
    cancel();
    pinch = spread();
    return;
  }
  if (pointers.size === 1) drag = { ...begin(event), far: false };
}

function dragged(event) {
  if (!pointers.has(event.pointerId)) return;
  const before = pointers.get(event.pointerId);
  pointers.set(event.pointerId, event);
  if (pinch) {
    const now = spread();
    view.panBy(now.x - pinch.x, now.y - pinch.y);
    view.zoomBy(now.distance / pinch.distance, now.x, now.y);
    pinch = now;
    return;
  }
  if (!drag) return;
  const { left, top } = view.at(event);
  drag.far ||= Math.hypot(left - drag.from.left, top - drag.from.top) > DRAG;
  if (!drag.far) return;
  if (drag.kind === "pan") {
    view.panBy(event.clientX - before.clientX, event.clientY - before.clientY);
    return;
  }
  const shapes = outcome(event);
  draft.shapes = shapes;
  draft.selected = drag.index ?? shapes.length - 1;
  draw();
}

function released(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (pinch) {
    if (pointers.size < 2) pinch = null;
    drag = null;
    return;
  }
  if (!drag) return;
  const done = drag;
  const shapes = done.far && done.kind !== "pan" ? outcome(event) : null;
  drag = null;
  draft.shapes = null;
  if (shapes) finish(shapes, done);
  else if (!done.far && done.kind !== "pan") clicked(event, done);
  else draw();
}

function finish(shapes, { kind, index }) {
  const shape = shapes.at(-1);
  if (kind === "lasso") {
    delete shape.open;
    shape.points = simplified(shape.points, 1.5 / view.scale);
    if (shape.points.length < 3) return draw();
  }
  draft.selected = index ?? shapes.length - 1;
  setPrompts(shapes);
}

/** A click selects what is under it, or adds a point there, or takes away. */
function clicked(event, { kind }) {
  const { x, y } = view.at(event);
  if (kind === "resize") return;
  const add = (label) => {
    draft.selected = state.prompts.length;
    setPrompts([...state.prompts, { type: "point", x, y, label }]);
  };
  if (takesAway(event)) return add(0);
  const near = NEAR[event.pointerType] / view.scale;
  const under = state.prompts.findLastIndex((shape) => covers(shape, { x, y }, near));
  if (under >= 0) {
    draft.selected = under;
    draw();
  } else if (kind !== "lasso") add(1);
}

function spread() {
  const [a, b] = [...pointers.values()].map((event) => view.at(event));
  return {
    x: (a.left + b.left) / 2, y: (a.top + b.top) / 2, distance: Math.max(1, Math.hypot(a.left - b.left, a.top - b.top)),
  };
}

/** Ends a drag without an effect; whether there was one. */
export function cancel() {
  const was = drag !== null && drag.far;
  drag = null;
  draft.shapes = null;
  draw();
  return was;
}

stage.addEventListener("pointerdown", pressed);
stage.addEventListener("pointermove", dragged);
stage.addEventListener("pointerup", released);
stage.addEventListener("pointercancel", (event) => {
  pointers.delete(event.pointerId);
  pinch = null;
  cancel();
});
stage.addEventListener("auxclick", (event) => event.preventDefault());
stage.addEventListener(
  "wheel",
  (event) => {
    if (!state.picture) return;
    // The wheel scrolls the page, as everywhere, unless it is asked to zoom or the picture is zoomed already.
    if (event.ctrlKey || event.metaKey) {
      const { left, top } = view.at(event);
      view.zoomBy(Math.exp(-event.deltaY * 0.004), left, top);
    } else if (view.zoom > 1) view.panBy(-event.deltaX, -event.deltaY);
    else return;
    event.preventDefault();
  },
  { passive: false },
);
for (const radio of document.querySelectorAll("input[name=tool]"))
  radio.addEventListener("change", () => (stage.dataset.tool = tool()));
