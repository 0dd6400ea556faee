// What the page is about: one picture, what is pointed at in it, and how to search. Everything else follows from it.

export const DEFAULTS = {
  view: "pointed", heads: null, shift: 1, zooms: "0", score: "blend", rerank: true, localize: null, boxes: true,
  limit: 24, min_score: null, filter: "", exclude: true,
};

export const state = {
  info: null,
  // {kind: "row", id} or {kind: "upload", digest, name, scale, original, blob, url}, with width and height in pixels of
  // the upright original, the frame of every prompt; scale is what was sent over the original.
  picture: null,
  prompts: [],
  settings: { ...DEFAULTS },
};

const undone = [];
const listeners = [];

/** Calls `listener(what)` after each change: "picture", "prompts" or "settings". */
export const onChange = (listener) => listeners.push(listener);
const changed = (what) => listeners.forEach((listener) => listener(what));

export function setPicture(picture, prompts = []) {
  state.picture = picture;
  state.prompts = prompts;
  undone.length = 0;
  changed("picture");
}

export function setPrompts(prompts) {
  undone.push(state.prompts);
  state.prompts = prompts;
  changed("prompts");
}

export function undo() {
  if (!undone.length) return false;
  state.prompts = undone.pop();
  changed("prompts");
  return true;
}

export const canUndo = () => undone.length > 0;

export function setSettings(values) {
  Object.assign(state.settings, values);
  changed("settings");
}

/** Only taking away selects nothing: the whole picture is searched until something is added. */
export const isPointed = () => state.prompts.some((prompt) => prompt.label !== 0);
