// How to search: one table of controls.

import { $, make } from "./dom.js";
import { zoomsOf } from "./requests.js";
import { DEFAULTS, setSettings, state } from "./state.js";

const optional = (text, read = Number) => (text.trim() === "" ? null : read(text));

// [name, label, kind, more]: `read` makes the state's value of the control's text, `show` the reverse.
const CONTROLS = [
  ["heads", "Heads kept", "select", {
    options: () => [
      ["", `default (${state.info.model.default_heads})`], ["all", "all"],
      ...Array.from({ length: state.info.model.heads - 1 }, (_, i) => [String(i + 1), String(i + 1)]),
    ],
    read: (text) => (text === "all" ? "all" : optional(text)),
  }],
  ["shift", "Attention shift", "range", { title: "The share of the attention that is moved onto what you point at", min: 0, max: 1, step: 0.05, read: Number }],
  ["zooms", "Zooms", "text", { title: "0 is the whole picture, 1.25 a crop around the prompt; several, as 0, 2, are averaged", read: (text) => text.trim() || "0" }],
  ["score", "Ranked by", "select", {
    options: () => [["blend", "blend"], ["query_db", "query_db"], ["ann", "ann"]],
  }],
  ["limit", "Hits", "number", { min: 1, max: 16384, step: 1, read: (text) => optional(text) ?? DEFAULTS.limit }],
  ["min_score", "Least score", "number", { min: -1, max: 1, step: 0.01, read: optional, placeholder: "none" }],
  ["localize", "Third stage: rows looked into", "number", { title: "So many of the best rows are looked into, and ranked by what is found there, too", min: 1, max: 1000, step: 1, read: optional, placeholder: "none" }],
  ["rerank", "Stage two (rerank)", "checkbox"],
  ["boxes", "Boxes in the hits", "checkbox"],
  ["exclude", "Leave the query out", "checkbox"],
  ["filter", "Filter, a Milvus expression", "text", { wide: true, placeholder: 'for example: width > 500 and path like "%2024%"' }],
];

function control([name, label, kind, more = {}]) {
  const { options, wide, read, show, ...attributes } = more;
  const input =
    kind === "select"
      ? make("select", { id: name }, ...options().map(([value, text]) => make("option", { value, textContent: text })))
      : make("input", { id: name, type: kind, autocomplete: "off", spellcheck: false, ...attributes });
  input.setAttribute("aria-describedby", `${name}-error`);
  const error = make("p", { id: `${name}-error`, className: "error", role: "alert", hidden: true });
  if (kind === "checkbox") return make("div", {}, make("label", { className: "check" }, input, label), error);
  const title = make("label", { htmlFor: name, textContent: label });
  if (kind === "range") title.append(make("output", { id: `${name}-value`, htmlFor: name }));
  return make("div", { className: wide ? "wide" : "" }, title, input, error);
}

/** Makes the form, when the model is known. */
export function makeSettings() {
  const form = $("settings");
  if (form.childElementCount) return showSettings();
  form.append(...CONTROLS.map(control));
  form.append(make("div", { className: "buttons" }, make("button", { type: "reset", textContent: "Defaults" })));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    setSettings({ ...DEFAULTS, view: state.settings.view });
  });
  form.addEventListener("change", ({ target }) => take(target));
  form.addEventListener("input", ({ target }) => target.type === "range" && ($(`${target.id}-value`).textContent = target.value));
  showSettings();
}

function take(input) {
  const [name, , kind, more = {}] = CONTROLS.find(([each]) => each === input.id);
  const value = kind === "checkbox" ? input.checked : (more.read ?? String)(input.value);
  const problem = wrong(name, value, input);
  const place = $(`${name}-error`);
  place.textContent = problem;
  place.hidden = !problem;
  if (problem) input.setAttribute("aria-invalid", "true");
  else setSettings({ [name]: value });
}

function wrong(name, value, input) {
  if (name === "zooms" && !zoomsOf(value).every((zoom) => zoom === 0 || zoom >= 1)) return "0, or 1 and more; several with commas";
  return input.validity.valid ? "" : input.validationMessage;
}

/** Shows the state's values in the controls. */
export function showSettings() {
  for (const [name, , kind] of CONTROLS) {
    const input = $(name);
    if (!input) return;
    const value = state.settings[name];
    if (kind === "checkbox") input.checked = value;
    else input.value = value ?? "";
    if (kind === "range") $(`${name}-value`).textContent = value;
  }
  for (const radio of document.querySelectorAll("input[name=view]")) radio.checked = radio.value === state.settings.view;
}

$("settings-button").addEventListener("click", () => {
  const form = $("settings");
  form.hidden = !form.hidden;
  $("settings-button").setAttribute("aria-expanded", String(!form.hidden));
});
for (const radio of document.querySelectorAll("input[name=view]"))
  radio.addEventListener("change", () => setSettings({ view: radio.value }));
