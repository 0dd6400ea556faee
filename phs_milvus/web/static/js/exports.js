// The results as files: JSON, CSV and COCO.

import { $, make, plural, showDialog } from "./dom.js";
import { latest } from "./search.js";
import { state } from "./state.js";

const COLUMNS = ["rank", "id", "score", "ann_score", "ann_rank", "query_db_score", "query_db_rank", "blend_score", "localized_score"];

const plain = ({ show, ...hit }) => hit;

/** A text that a spreadsheet takes for no formula. */
function cell(value) {
  const text = value == null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function asCsv(hits) {
  const fields = [...new Set(hits.flatMap((hit) => Object.keys(hit.fields ?? {})))].filter((name) => !COLUMNS.includes(name));
  const rows = hits.map((hit) => [...COLUMNS.map((name) => hit[name]), hit.boxes?.[0]?.box.join(" "), ...fields.map((name) => hit.fields[name])]);
  return [[...COLUMNS, "box", ...fields], ...rows].map((row) => row.map(cell).join(",")).join("\r\n");
}

function asCoco(hits) {
  const located = hits.filter((hit) => hit.boxes);
  const images = located.map((hit, index) => ({ id: index + 1, file_name: String(hit.id), width: hit.width, height: hit.height }));
  const annotations = located.flatMap((hit, index) =>
    hit.boxes.map(({ box: [x0, y0, x1, y1], score }) => ({
      image_id: index + 1, category_id: 1, bbox: [x0, y0, x1 - x0, y1 - y0], area: (x1 - x0) * (y1 - y0), iscrowd: 0, score,
    })),
  );
  annotations.forEach((annotation, index) => (annotation.id = index + 1));
  return { images, annotations, categories: [{ id: 1, name: "query" }] };
}

function save(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

$("save-button").addEventListener("click", () => {
  const answer = latest.pointed ?? latest.whole;
  if (!answer) return;
  const { hits } = answer;
  const located = hits.filter((hit) => hit.boxes).length;
  const json = () => JSON.stringify({ ...answer, asked: latest.body, hits: hits.map(plain) }, null, 2);
  const choices = [
    ["JSON", () => save(json(), "hits.json", "application/json")],
    ["CSV", () => save(asCsv(hits), "hits.csv", "text/csv")],
    ["COCO boxes", () => save(JSON.stringify(asCoco(hits), null, 2), "boxes.json", "application/json")],
  ];
  showDialog(
    "Save the results",
    make("p", { className: "quiet", textContent: `${plural(hits.length, "hit")} of ${state.info.collection.name}; ${located} with boxes so far.` }),
    make("div", { className: "buttons" }, ...choices.map(([name, act]) => make("button", { type: "button", textContent: name, onclick: act, disabled: name === "COCO boxes" && !located }))),
  );
});
