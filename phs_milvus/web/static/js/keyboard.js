// Pointing without a pointer: a cross that the arrow keys move, on the stage; and keys for the tools.

import { $ } from "./dom.js";
import { draft, draw } from "./drawing.js";
import { cancel } from "./gestures.js";
import { boxOf } from "./shapes.js";
import { setPrompts, state, undo } from "./state.js";
import { view } from "./view.js";

const stage = $("stage");
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let started = null; // the corners of a box or a lasso that has begun: {kind, points}

const useTool = (value) => {
  const radio = document.querySelector(`input[name=tool][value=${value}]`);
  radio.checked = true;
  radio.dispatchEvent(new Event("change"));
};

function cross() {
  return (draft.cross ??= { x: state.picture.width / 2, y: state.picture.height / 2 });
}

function step([dx, dy], event) {
  const at = cross();
  const pixels = (event.shiftKey ? 40 : event.ctrlKey ? 1 : 10) / view.scale;
  draft.cross = {
    x: Math.min(state.picture.width, Math.max(0, at.x + dx * pixels)),
    y: Math.min(state.picture.height, Math.max(0, at.y + dy * pixels)),
  };
  preview();
  view.reveal(draft.cross);
}

/** Shows a box or lasso that has begun, up to the cross. */
function preview() {
  draft.shapes = null;
  if (started?.kind === "box" && started.points.length)
    draft.shapes = [...state.prompts, { ...boxOf(started.points[0], cross()), open: true }];
  if (started?.kind === "lasso" && started.points.length) {
    const points = [...started.points, cross()].map(({ x, y }) => [x, y]);
    draft.shapes = [...state.prompts, { type: "lasso", points, open: true }];
  }
  draw();
}

function add(shape) {
  const at = draft.cross;
  started = null;
  $("keys").hidden = true; // they are known now, and may be over what is pointed at next
  draft.selected = state.prompts.length;
  setPrompts([...state.prompts, shape]);
  draft.cross = at;
  draw();
}

function enter(event) {
  const at = { ...cross() };
  if (!started) {
    if ($("remove").checked || event.altKey) return add({ type: "point", ...at, label: 0 });
    return add({ type: "point", ...at, label: 1 });
  }
  const last = started.points.at(-1);
  if (started.kind === "box") {
    if (!last) started.points.push(at);
    else if (last.x !== at.x && last.y !== at.y) return add(boxOf(last, at));
  } else if (last && Math.hypot(last.x - at.x, last.y - at.y) * view.scale < 2) {
    // Enter twice at one place closes the lasso.
    if (started.points.length >= 3) return add({ type: "lasso", points: started.points.map(({ x, y }) => [x, y]) });
  } else started.points.push(at);
  preview();
}

function remove() {
  if (!state.prompts.length) return;
  const index = draft.selected >= 0 ? draft.selected : state.prompts.length - 1;
  draft.selected = -1;
  setPrompts(state.prompts.filter((_, at) => at !== index));
}

/** Escape gives up what has begun, or else clears. */
export function escape() {
  if (started || cancel()) {
    started = null;
    draft.shapes = null;
    draw();
  } else if (state.prompts.length) setPrompts([]);
}

function begin(kind) {
  useTool(kind === "box" ? "point" : "lasso");
  started = { kind, points: [] };
  preview();
}

const KEYS = {
  b: () => begin("box"), l: () => begin("lasso"), m: () => useTool("move"), Enter: enter, " ": enter, Delete: remove,
  Backspace: remove, Escape: escape, "+": () => view.zoomBy(1.4), "=": () => view.zoomBy(1.4),
  "-": () => view.zoomBy(1 / 1.4), 0: () => view.fit(),
};

stage.addEventListener("keydown", (event) => {
  if (!state.picture || event.target !== stage) return;
  if ((event.ctrlKey || event.metaKey) && event.key !== "z" && !ARROWS[event.key]) return;
  const act = ARROWS[event.key] ? () => step(ARROWS[event.key], event) : KEYS[event.key];
  if (!act || event.key === "z") return;
  event.preventDefault();
  act(event);
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, select, textarea, dialog") || $("dialog").open) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && undo()) event.preventDefault();
  else if (event.key !== "Escape" || event.target === stage) return;
  else if (!$("settings").hidden) $("settings-button").click();
  else if (state.picture) escape();
});
stage.addEventListener("focus", () => {
  if (stage.matches(":focus-visible") && state.picture) $("keys").hidden = false;
});
stage.addEventListener("blur", () => {
  $("keys").hidden = true;
  draft.cross = null;
  draw();
});
