// Ranks pictures by the thing that a box points at, as FocusedSearch does, without Milvus and without Python:
//     node search.mjs 127.0.0.1:50051 street.jpg 40,60,180,220 candidates/*.jpg
// Prints one JSON object: the model, the hits, best first, and the pictures that could not be encoded.

import { readFile } from "node:fs/promises";
import { Encoder, boxToMask, float16States, float32, numbers } from "./phs.mjs";

const [address, picture, box, ...candidates] = process.argv.slice(2);
if (!candidates.length) {
  console.error("usage: node search.mjs HOST:PORT IMAGE X0,Y0,X1,Y1 CANDIDATE...");
  process.exit(2);
}
const encoder = new Encoder(address, { token: process.env.PHS_TOKEN });
try {
  const info = await encoder.call("GetModelInfo", {});
  const common = { expectedFingerprint: info.fingerprint }; // never embeddings of two models

  // A mask has the upright image's size, which any answer tells: of the whole image, for example.
  const image = await readFile(picture);
  const whole = await encoder.encode(image, common);
  const mask = boxToMask(whole.width, whole.height, box.split(",").map(Number));

  // The query, read out with every head for stage one and with the model's default number of heads for stage two, all
  // of the attention on the box. The server holds the picture by now: its digest is enough.
  const prompts = [{ mask, focus: { attentionShift: 1, allHeads: true } }, { mask, focus: { attentionShift: 1 } }];
  const outputs = ["OUTPUT_EMBEDDING", "OUTPUT_HEADS"];
  const { encodings } = await encoder.encode(image, { ...common, prompts, outputs });

  // The candidates' states. One would store them with the pictures; here they are encoded, and bad ones are named.
  const pictures = await Promise.all(candidates.map(async (path) => [path, await readFile(path)]));
  const [states, failed] = [new Map(), {}];
  for await (const [path, answer, error] of encoder.encodeMany(pictures, { ...common, outputs: ["OUTPUT_STATE"] })) {
    if (error) failed[path] = error;
    else states.set(path, answer.state.data);
  }
  if (!states.size) throw new Error("no candidate could be encoded");

  // Two queries against every state in one call. States of pictures are read out with every head in stage one.
  const { scores } = await encoder.call("Rerank", {
    ...common,
    embeddings: float32([2, info.embeddingSize], ...encodings.map((one) => numbers(one.embedding))),
    headWeights: float32([2, info.heads], new Float32Array(info.heads).fill(1), numbers(encodings[1].headWeights)),
    states: float16States([...states.values()], info.hiddenSize),
  });
  const [found, count] = [numbers(scores), states.size];
  const hits = [...states.keys()].map((path, index) => {
    const [ann, queryDb] = [found[index], found[count + index]];
    return { path, score: (ann + queryDb) / 2, ann_score: ann, query_db_score: queryDb };
  });
  hits.sort((a, b) => b.score - a.score);
  console.log(JSON.stringify({ model: info.modelId, hits, failed }, null, 2));
} catch (error) {
  console.error(error.code === undefined ? error.message : `gRPC status ${error.code}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  encoder.close();
}
