// A client of phs-server, from encoder.proto alone. Tensors become Float32Array or Buffer; boxes are [x0, y0, x1, y1] in
// pixels of the upright image, x1 and y1 exclusive.

import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTO = process.env.PHS_PROTO ?? fileURLToPath(new URL("../../proto/phs/v1/encoder.proto", import.meta.url));
const { FocusEncoder } = grpc.loadPackageDefinition(
  protoLoader.loadSync(PROTO, { enums: String, longs: Number, defaults: true, oneofs: true }),
).phs.v1;

const MESSAGE_BYTES = 64 * 2 ** 20; // the server's default limit; gRPC's own is 4 MiB
const SERVICE = "phs.v1.FocusEncoder";
const OPTIONS = {
  "grpc.max_receive_message_length": MESSAGE_BYTES,
  "grpc.max_send_message_length": -1,
  "grpc.enable_retries": 1,
  // A full or starting server is asked again; a stream is not, for its items would have to be sent again.
  "grpc.service_config": JSON.stringify({
    loadBalancingConfig: [{ round_robin: {} }],
    methodConfig: [
      { name: [{ service: SERVICE, method: "EncodeStream" }, { service: SERVICE, method: "Locate" }] },
      {
        name: [{ service: SERVICE }],
        retryPolicy: {
          maxAttempts: 5,
          initialBackoff: "0.1s",
          maxBackoff: "2s",
          backoffMultiplier: 2,
          retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        },
      },
    ],
  }),
};

export class Encoder {
  // credentials: null for plaintext, or grpc.credentials.createSsl(...); token: as in the server's --token-file.
  constructor(address, { credentials = null, token = "", seconds = 30 } = {}) {
    this.stub = new FocusEncoder(address, credentials ?? grpc.credentials.createInsecure(), OPTIONS);
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set("authorization", `Bearer ${token}`);
    this.seconds = seconds;
  }

  // A unary call: "GetModelInfo", "Encode", "Readout" or "Rerank". Rejects with a gRPC status: error.code, error.details.
  call(method, request) {
    const options = { deadline: new Date(Date.now() + 1000 * this.seconds) };
    return new Promise((resolve, reject) =>
      this.stub[method](request, this.metadata, options, (error, answer) => (error ? reject(error) : resolve(answer))),
    );
  }

  // What is sent for a picture: its digest where the server may still hold it, and the bytes where it does not.
  async encode(image, request) {
    const digest = createHash("sha256").update(image).digest();
    try {
      return await this.call("Encode", { ...request, digest });
    } catch (error) {
      if (error.code !== grpc.status.NOT_FOUND) throw error;
      return this.call("Encode", { ...request, image });
    }
  }

  // Encodes many pictures, [[key, bytes], ...], with at most `inFlight` unanswered, and yields [key, answer, error] as
  // they are done, in any order: a bad picture gives an error of its own, {code, message}, and the others go on.
  async *encodeMany(pictures, request, inFlight = 64) {
    const stream = this.stub.EncodeStream(this.metadata);
    const keys = new Map();
    const source = pictures[Symbol.iterator]();
    let id = 0;
    const send = () => {
      const { done, value } = source.next();
      if (done) return stream.end();
      keys.set(++id, value[0]);
      stream.write({ id, request: { ...request, image: value[1] } });
    };
    for (let count = 0; count < inFlight && !stream.writableEnded; count++) send();
    const silence = setTimeout(() => stream.cancel(), 1000 * this.seconds); // without any answer
    try {
      for await (const answer of stream) {
        silence.refresh();
        const key = keys.get(answer.id);
        keys.delete(answer.id);
        if (!stream.writableEnded) send();
        yield answer.result === "error" ? [key, null, answer.error] : [key, answer.response, null];
      }
    } finally {
      clearTimeout(silence);
      stream.cancel(); // where the caller has seen enough
    }
    if (keys.size) throw new Error(`the server ended the stream with ${keys.size} pictures unanswered`);
  }

  close() {
    this.stub.close();
  }
}

// The mask of a box: run lengths in row-major order, zeros first; they sum to width * height.
export function boxToMask(width, height, [x0, y0, x1, y1]) {
  const clip = (value, limit) => Math.min(Math.max(value, 0), limit);
  const [left, right] = [clip(Math.floor(x0), width), clip(Math.ceil(x1), width)];
  const [top, bottom] = [clip(Math.floor(y0), height), clip(Math.ceil(y1), height)];
  if (left >= right || top >= bottom) throw new RangeError(`the box lies outside the ${width}x${height} image`);
  const runs = [];
  let end = 0; // of the ones so far
  for (let row = top; row < bottom; row++) {
    const [start, stop] = [row * width + left, row * width + right];
    if (runs.length && start === end) runs[runs.length - 1] += stop - start; // full rows join
    else runs.push(start - end, stop - start);
    end = stop;
  }
  if (end < width * height) runs.push(width * height - end);
  return { width, height, runs };
}

// float32 numbers -> a Tensor of the contract, which is little-endian as every machine that runs Node.
export const float32 = (shape, ...arrays) => ({
  dtype: "DTYPE_FLOAT32",
  shape,
  data: Buffer.concat(arrays.map((array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength))),
});

// Stored states, each the `data` of an EncodeResponse.state, as one Tensor [K, 2, D].
export const float16States = (states, hiddenSize) => ({
  dtype: "DTYPE_FLOAT16",
  shape: [states.length, 2, hiddenSize],
  data: Buffer.concat(states),
});

// A float32 Tensor's numbers. The copy aligns them: a message's bytes may begin anywhere.
export const numbers = (tensor) => new Float32Array(new Uint8Array(tensor.data).buffer);
