// Calls of the server's API. A failed one throws a Problem, with what problem+json says.

export class Problem extends Error {
  constructor(detail, status, field = "") {
    super(detail);
    this.status = status; // 0: the server did not answer
    this.field = field;
  }
  /** Whether the same request may succeed in a moment, without anybody changing it. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 502 || this.status === 409;
  }
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server of this page does not answer; is it still running?", 0);
  }
  if (answer.ok) return answer.json();
  if (answer.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    await new Promise(() => {}); // the page is on its way out
  }
  const problem = await answer.json().catch(() => ({}));
  throw new Problem(problem.detail ?? `${answer.status} ${answer.statusText}`, answer.status, problem.field);
}

const post = (path, body, signal) =>
  call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });

export const info = () => call("/api/v1/info", { cache: "no-store" });
export const rows = (after) =>
  call(`/api/v1/rows?limit=60${after == null ? "" : `&after=${encodeURIComponent(after)}`}`);
export const row = (id) => call(`/api/v1/rows/${path(id)}`);
export const search = (body, signal) => post("/api/v1/search", body, signal);
export const explain = (body, signal) => post("/api/v1/explain", body, signal);
export const locate = (body, signal) => post("/api/v1/locate", body, signal);
export const hold = (blob) =>
  call("/api/v1/pictures", { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" } });

const path = (id) => String(id).split("/").map(encodeURIComponent).join("/");
export const imageOf = (id, size) => `/image/${path(id)}?size=${size}`;
export const uploadOf = (digest, size) => `/api/v1/pictures/${digest}?size=${size}`;
