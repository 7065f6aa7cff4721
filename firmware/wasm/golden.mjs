// node golden.mjs tinystream.wasm golden.json: the codes and bytes of the Python reference, in pieces of odd sizes.
import { readFile } from "node:fs/promises";
import { TinyStreamEncoder } from "./tinystream.mjs";

const [wasm, vectors] = process.argv.slice(2);
const golden = JSON.parse(await readFile(vectors, "utf8"));
const encoder = await TinyStreamEncoder.load(await readFile(wasm));
const samples = Int16Array.from(golden.samples);
for (const size of [encoder.hop, 777, samples.length]) {
  encoder.reset();
  const indices = [];
  for (let at = 0; at < samples.length; at += size) indices.push(...encoder.push(samples.subarray(at, at + size)));
  const wrong = golden.indices.findIndex((value, place) => value !== indices[place]);
  if (wrong >= 0 || indices.length !== golden.indices.length) {
    console.log(`failed: index ${wrong} of ${indices.length}: got ${indices[wrong]}, expected ${golden.indices[wrong]}`);
    process.exit(1);
  }
  const packet = encoder.pack(Uint16Array.from(indices));
  if (Buffer.from(packet).toString("hex") !== golden.packet) {
    console.log("failed: packet");
    process.exit(1);
  }
}
console.log(`ok: ${golden.indices.length / encoder.quantizers} frames`);
