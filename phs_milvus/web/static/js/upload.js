// Pictures of one's own: chosen, dropped or pasted, made smaller where they are huge, and sent once.

import * as api from "./api.js";
import { $ } from "./dom.js";
import { setPicture, state } from "./state.js";
import { fine, note, showProblem } from "./status.js";

// The model sees a few hundred pixels a side: what is beyond these is not worth sending.
const MOST_PIXELS = 16e6;
const MOST_BYTES = 12 * 2 ** 20;
const SCALED_SIDE = 3072;

/** Takes a file as the picture to point in. */
export async function takeFile(file) {
  const mine = (takeFile.last = {});
  note(`Reading ${file.name || "the picture"} …`);
  let url = URL.createObjectURL(file);
  try {
    const size = await sizeOf(url);
    let [blob, original] = [file, null];
    if (size && (size.width * size.height > MOST_PIXELS || file.size > MOST_BYTES)) {
      note(`Making ${size.width} × ${size.height} pixels smaller …`);
      [blob, original] = await Promise.all([scaled(file, size), sha256(file)]);
      URL.revokeObjectURL(url);
      url = URL.createObjectURL(blob);
    }
    const held = await api.hold(blob);
    if (mine !== takeFile.last) return URL.revokeObjectURL(url);
    // The frame of prompts is the original's; what was sent may be smaller.
    const frame = blob === file || !size ? held : size;
    note("");
    fine();
    setPicture({
      kind: "upload", digest: held.picture, name: file.name ?? "", blob, original, width: frame.width,
      height: frame.height, scale: held.width / frame.width, url: size ? url : null,
    });
  } catch (error) {
    URL.revokeObjectURL(url);
    if (mine !== takeFile.last) return;
    note("");
    showProblem(error, () => takeFile(file));
  }
}

/** The upright size of what a browser can show; null for what it cannot, such as HEIC, which the server draws. */
async function sizeOf(url) {
  const image = new Image();
  image.src = url;
  const known = await new Promise((done) => {
    image.onload = () => done(true);
    image.onerror = () => done(false);
  });
  return known && image.naturalWidth ? { width: image.naturalWidth, height: image.naturalHeight } : null;
}

async function scaled(file, { width, height }) {
  const share = Math.min(1, SCALED_SIDE / Math.max(width, height));
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.round(side * share)));
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image", resizeWidth, resizeHeight, resizeQuality: "high",
  });
  const canvas = new OffscreenCanvas(resizeWidth, resizeHeight);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, resizeWidth, resizeHeight);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

/** The digest by which a collection knows the file; null where the browser does not say (plain HTTP, not loopback). */
async function sha256(file) {
  if (!crypto.subtle) return null;
  const hash = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Sends the picture again that the server has forgotten; whether it could be. */
export async function resend() {
  const { picture } = state;
  if (!picture?.blob) return false;
  const held = await api.hold(picture.blob).catch(() => null);
  return held?.picture === picture.digest;
}

const isPicture = (file) => file.type.startsWith("image/") || /\.(hei[cf]|tiff?|jp2|j2k|p[pgb]m)$/i.test(file.name);

function takeFirst(files) {
  const file = [...files].find(isPicture);
  if (file) takeFile(file);
  else if (files.length) note(`${files[0].name || "That"} is no picture.`, true);
  return Boolean(file);
}

$("choose").addEventListener("click", () => $("file").click());
$("other").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", (event) => {
  takeFirst(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (takeFirst(event.clipboardData?.files ?? [])) event.preventDefault();
});
let depth = 0;
const over = (on) => $("stage").classList.toggle("over", on);
addEventListener("dragenter", (event) => event.dataTransfer?.types.includes("Files") && (depth++, over(true)));
addEventListener("dragleave", () => (depth = Math.max(0, depth - 1)) || over(false));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  over(false);
  takeFirst(event.dataTransfer?.files ?? []);
});
