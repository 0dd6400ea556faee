// The address of a search: everything that is not the default, so that a link shows the same again.

import { DEFAULTS, state } from "./state.js";

const round = (value) => Math.round(value * 10) / 10;


function written(prompt) {
  if (prompt.type === "box") return `b${[prompt.x0, prompt.y0, prompt.x1, prompt.y1].map(round)}`;
  if (prompt.type === "lasso") return `l${prompt.points.flat().map(round)}`;
  return `${prompt.label === 0 ? "n" : "c"}${[prompt.x, prompt.y].map(round)}`;
}

function readPrompt(text) {
  const numbers = text.slice(1).split(",").map(Number);
  if (!numbers.every(Number.isFinite)) return null;
  const [x0, y0, x1, y1] = numbers;
  if (text[0] === "b" && numbers.length === 4) return { type: "box", x0, y0, x1, y1 };
  if (text[0] === "l" && numbers.length >= 6 && numbers.length % 2 === 0)
    return { type: "lasso", points: numbers.flatMap((x, i) => (i % 2 ? [] : [[x, numbers[i + 1]]])) };
  if ("cn".includes(text[0]) && numbers.length === 2)
    return { type: "point", x: x0, y: y0, label: text[0] === "n" ? 0 : 1 };
  return null;
}

/** The address of the state as it is. */
export function address() {
  const { picture, prompts, settings } = state;
  const query = new URLSearchParams();
  if (picture?.kind === "row") query.set("id", picture.id);
  if (picture?.kind === "upload") {
    const { digest, name, width, height, scale, original } = picture;
    query.set("picture", digest);
    query.set("of", [width, height, scale].join(","));
    if (name) query.set("name", name);
    if (original) query.set("original", original);
  }
  if (prompts.length) query.set("p", prompts.map(written).join(";"));
  for (const [name, value] of Object.entries(settings))
    if (value !== DEFAULTS[name]) query.set(name, String(value ?? ""));
  const text = query.toString().replaceAll("%2C", ",").replaceAll("%3B", ";");
  return text ? `/?${text}` : "/";
}

/** What an address asks for: {id} or {upload}, prompts, settings. */
export function readAddress(text = location.search) {
  const query = new URLSearchParams(text);
  const settings = { ...DEFAULTS };
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    if (!query.has(name)) continue;
    const value = query.get(name);
    if (typeof usual === "boolean") settings[name] = value === "true";
    else if (typeof usual === "string") settings[name] = value;
    else if (value === "") settings[name] = null;
    else if (name === "heads" && value === "all") settings[name] = "all";
    else if (Number.isFinite(Number(value))) settings[name] = Number(value);
  }
  const prompts = (query.get("p") ?? "").split(";").filter(Boolean).map(readPrompt).filter(Boolean);
  const asked = { settings, prompts };
  if (query.has("id")) asked.id = query.get("id");
  else if (/^[0-9a-f]{64}$/.test(query.get("picture") ?? "")) {
    const [width, height, scale] = (query.get("of") ?? "").split(",").map(Number);
    if (width > 0 && height > 0 && scale > 0)
      asked.upload = {
        kind: "upload", digest: query.get("picture"), name: query.get("name") ?? "", width, height, scale,
        original: query.get("original"),
      };
  }
  return asked;
}
