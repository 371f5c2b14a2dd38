// A picture to what Fashion-MNIST's networks take, and the network in LiteRT.js.
export const SIZE = 28;
export const LABELS = ['T-shirt', 'Trousers', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag',
  'Ankle boot'];
const MEAN = Math.fround(0.2860), STD = Math.fround(0.3530);  // of keras_metamix.data.normalize
const FAINT = 0.15;  // of the strongest pixel: what differs less from the ground counts as ground

/** How far each pixel of RGBA data is from the ground around the picture, 0 to 255. */
function foreground({data, width, height}) {
  const gray = new Float32Array(width * height), border = [];
  for (let at = 0; at < gray.length; at++) {
    gray[at] = 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2];
    const x = at % width, y = (at - x) / width;
    if (!x || !y || x === width - 1 || y === height - 1) border.push(gray[at]);
  }
  const ground = border.sort((a, b) => a - b)[border.length >> 1];
  const far = gray.map((value) => Math.abs(value - ground));
  const strongest = far.reduce((a, b) => Math.max(a, b), 1);
  return far.map((value) => value < FAINT * strongest ? 0 : value);
}

/**
 * The garment of a picture as Fashion-MNIST has it: bright on black, cut out, its longer side 28 pixels, in the
 * middle.
 * @param {ImageData} picture
 * @return {Uint8Array} 28 x 28 pixels, or null where there is nothing.
 */
export function garment(picture) {
  const far = foreground(picture), {width} = picture;
  let left = Infinity, top = Infinity, right = -1, bottom = -1;
  far.forEach((value, at) => {
    if (!value) return;
    const x = at % width, y = (at - x) / width;
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  });
  if (right < 0) return null;
  const scale = SIZE / Math.max(right - left + 1, bottom - top + 1);
  const startX = (left + right + 1) / 2 - SIZE / 2 / scale, startY = (top + bottom + 1) / 2 - SIZE / 2 / scale;
  const sums = new Float64Array(SIZE * SIZE), counts = new Float64Array(SIZE * SIZE);
  for (let at = 0; at < sums.length; at++) {  // the mean of 16 points of each pixel
    for (let part = 0; part < 16; part++) {
      const x = Math.floor(startX + (at % SIZE + (part % 4 + 0.5) / 4) / scale);
      const y = Math.floor(startY + (Math.floor(at / SIZE) + (Math.floor(part / 4) + 0.5) / 4) / scale);
      const inside = x >= left && x <= right && y >= top && y <= bottom;
      sums[at] += inside ? far[y * width + x] : 0;
      counts[at] += 1;
    }
  }
  return Uint8Array.from(sums, (sum, at) => Math.min(255, Math.round(sum / counts[at])));
}

/** The network's input of pixels, in the arithmetic of float32. */
export function normalized(pixels) {
  return Float32Array.from(pixels, (p) => Math.fround(Math.fround(Math.fround(p / 255) - MEAN) / STD));
}

export function softmax(logits) {
  const highest = Math.max(...logits), powers = Array.from(logits, (x) => Math.exp(x - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** A file of one input (1, 28, 28, 1) and one output of logits. */
export class Classifier {
  /** Loads LiteRT.js and the file; without relaxed SIMD LiteRT.js takes its other build by itself. */
  static async load(file, wasm) {
    const litert = await import('@litertjs/core');
    await litert.loadLiteRt(wasm);
    const response = await fetch(file);
    if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
    const flat = new Uint8Array(await response.arrayBuffer());
    const found = new Classifier();
    found.bytes = flat.length;
    found.tensor = litert.Tensor;
    found.model = await litert.loadAndCompile(flat, {accelerator: 'wasm'});
    return found;
  }

  /** The logits of 28 x 28 pixels. */
  async logits(pixels) {
    const input = new this.tensor(normalized(pixels), [1, SIZE, SIZE, 1]);
    const [output] = await this.model.run([input]);
    const found = output.toTypedArray().slice();
    input.delete();
    output.delete();
    return found;
  }
}
