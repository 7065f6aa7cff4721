// TinyStream's encoder in a browser or under Node: the firmware's C, compiled to WebAssembly.

export class TinyStreamEncoder {
  /** @param {BufferSource} bytes tinystream.wasm */
  static async load(bytes) {
    const { instance } = await WebAssembly.instantiate(bytes, {});
    return new TinyStreamEncoder(instance.exports);
  }

  constructor(wasm) {
    this.wasm = wasm;
    this.hop = wasm.hop();
    this.quantizers = wasm.quantizers();
    this.mostFrames = wasm.most_frames();
    this.reset();
  }

  /** Silence before the first sample, and nothing left over. */
  reset() {
    this.wasm.start();
    this.rest = new Int16Array(0);
  }

  /**
   * Indices of the frames that the samples complete, frame by frame; any chunking gives the same.
   * @param {Int16Array} samples
   * @returns {Uint16Array} frames x quantizers
   */
  push(samples) {
    const joined = new Int16Array(this.rest.length + samples.length);
    joined.set(this.rest);
    joined.set(samples, this.rest.length);
    const frames = Math.floor(joined.length / this.hop);
    const indices = new Uint16Array(frames * this.quantizers);
    for (let frame = 0; frame < frames; frame++) {
      const input = new Int16Array(this.wasm.memory.buffer, this.wasm.samples(), this.hop);
      input.set(joined.subarray(frame * this.hop, (frame + 1) * this.hop));
      this.wasm.encode(0);
      const output = new Uint16Array(this.wasm.memory.buffer, this.wasm.indices(), this.quantizers);
      indices.set(output, frame * this.quantizers);
    }
    this.rest = joined.slice(frames * this.hop);
    return indices;
  }

  /**
   * One packet of the bitstream from the indices of at most `mostFrames` frames, all quantizers.
   * @param {Uint16Array} indices
   * @returns {Uint8Array}
   */
  pack(indices) {
    const frames = indices.length / this.quantizers;
    if (!Number.isInteger(frames) || frames > this.mostFrames) {
      throw new RangeError(`got ${indices.length} indices, expected whole frames of ${this.quantizers}, at most ${this.mostFrames}`);
    }
    new Uint16Array(this.wasm.memory.buffer, this.wasm.indices(), indices.length).set(indices);
    const size = this.wasm.pack(frames, this.quantizers);
    if (!size) throw new RangeError("got an index outside the codebooks");
    return new Uint8Array(this.wasm.memory.buffer, this.wasm.packet(), size).slice();
  }
}
