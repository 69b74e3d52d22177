// The network on typed arrays, in a page that has its weights (`mnist-flax export --format html`).
//
// mnistFlax.predict(pixels), of a Uint8Array of 784 bytes an image, 0 the ground and 255 ink, returns for each image
// {digit, probabilities, novelty}: the likeliest of mnistFlax.classNames, the probability of each of these, and the
// out-of-distribution score, which is above 1 for what is unlike MNIST's digits; null if the network has none.

const PIXELS = 784;
const network = JSON.parse(document.getElementById("network").textContent);
const { classNames } = network;

// All weights, in the order in which they are taken here: of each float32 the upper three bytes.
const bytes = Uint8Array.from(atob(network.floats), (byte) => byte.charCodeAt(0));
const words = new DataView(new ArrayBuffer(4));
const floats = Float32Array.from({ length: bytes.length / 3 }, (_, i) => {
  bytes.subarray(3 * i, 3 * i + 3).forEach((byte, at) => words.setUint8(at, byte));
  return words.getFloat32(0);
});
let taken = 0;
const take = (count) => floats.subarray(taken, (taken += count));

const blocks = network.blocks.map(({ size, padding, ...block }) => {
  const kernel = take(block.channels * block.inputs * size ** 2), bias = take(block.channels);
  if (size === 3) return { ...block, padding, kernel, bias };
  const around = new Float32Array(9 * kernel.length); // 1×1 as 3×3, which takes one more pixel at each side
  kernel.forEach((weight, i) => (around[9 * i + 4] = weight));
  return { ...block, padding: padding + 1, kernel: around, bias };
});
const last = blocks.at(-1).channels;
const final = { weights: take(classNames.length * last), bias: take(classNames.length) };
const { features } = network; // the names of the blocks that the score looks at; none without a score
const length = blocks.reduce((sum, { name, channels }) => sum + features.includes(name) * channels, 0);
const means = classNames.map(() => take(length));
const whitening = take((length * (length + 1)) / 2); // a lower triangle, row by row

/** Images are planes, one after the other, of `side` squared numbers. This is a frame of zeros around each. */
function padded(input, side, channels, padding) {
  const width = side + 2 * padding, output = new Float64Array(channels * width ** 2);
  for (let row = 0; row < channels * side; row++) {
    const to = Math.floor(row / side) * width ** 2 + ((row % side) + padding) * width + padding;
    output.set(input.subarray(row * side, (row + 1) * side), to);
  }
  return output;
}

/** ReLU of a convolution by 3×3 weights. */
function convolve(input, side, { inputs, channels, kernel, bias }) {
  const width = side - 2, output = new Float64Array(channels * width ** 2);
  for (let channel = 0; channel < channels; channel++) {
    const plane = output.subarray(channel * width ** 2, (channel + 1) * width ** 2).fill(bias[channel]);
    for (let from = 0; from < inputs; from++) {
      const at = 9 * (channel * inputs + from);
      const [a, b, c, d, e, f, g, h, i] = kernel.subarray(at, at + 9);
      for (let y = 0; y < width; y++) {
        const to = y * width;
        let top = (from * side + y) * side, middle = top + side, bottom = middle + side;
        for (let x = to; x < to + width; x++, top++, middle++, bottom++) {
          plane[x] +=
            a * input[top] + b * input[top + 1] + c * input[top + 2] +
            d * input[middle] + e * input[middle + 1] + f * input[middle + 2] +
            g * input[bottom] + h * input[bottom + 1] + i * input[bottom + 2];
        }
      }
    }
  }
  return output.map((x) => Math.max(0, x));
}

/** The largest of each 2×2 numbers. */
function pool(input, side, channels) {
  const half = side / 2, output = new Float64Array(channels * half ** 2);
  for (let i = 0; i < output.length; i++) {
    const corner = 2 * (Math.floor(i / half) * side + (i % half));
    output[i] = Math.max(input[corner], input[corner + 1], input[corner + side], input[corner + side + 1]);
  }
  return output;
}

/** The output of each block: {name, width, height, channels, values}, channel after channel. */
function activations(pixels) {
  let x = Float64Array.from(pixels), side = Math.sqrt(PIXELS);
  return blocks.map((block) => {
    const width = side + 2 * block.padding - 2;
    const values = convolve(padded(x, side, block.inputs, block.padding), width + 2, block);
    x = block.pooled ? pool(values, width, block.channels) : values;
    side = block.pooled ? width / 2 : width;
    return { name: block.name, width, height: width, channels: block.channels, values };
  });
}

/** The mean of each channel. */
function averages({ channels, values }) {
  const area = values.length / channels;
  return Array.from({ length: channels }, (_, channel) =>
    values.subarray(channel * area, (channel + 1) * area).reduce((sum, x) => sum + x, 0) / area);
}

function softmax(logits) {
  const top = Math.max(...logits), powers = logits.map((logit) => Math.exp(logit - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** The distance of features from the nearest class. */
function distance(found) {
  return Math.min(...means.map((mean) => {
    const whitened = new Float64Array(length);
    for (let i = 0, at = 0; i < length; i++) {
      for (let j = 0; j <= i; j++) whitened[j] += (found[i] - mean[i]) * whitening[at++];
    }
    return Math.hypot(...whitened);
  }));
}

/** {digit, probabilities, novelty} of what `activations` returns. */
function judge(outputs) {
  const pooled = averages(outputs.at(-1));
  const logits = classNames.map((_, label) =>
    pooled.reduce((sum, x, i) => sum + x * final.weights[label * last + i], final.bias[label]) / network.temperature);
  const probabilities = softmax(logits);
  const found = outputs.filter(({ name }) => features.includes(name)).flatMap(averages);
  return {
    digit: classNames[probabilities.indexOf(Math.max(...probabilities))],
    probabilities,
    novelty: features.length ? distance(found) : null,
  };
}

function predict(pixels) {
  // Not `instanceof`: a page that has this one in a frame has a Uint8Array of its own.
  if (Object.prototype.toString.call(pixels) !== "[object Uint8Array]" || pixels.length % PIXELS) {
    throw new TypeError(`mnistFlax.predict takes a Uint8Array of ${PIXELS} bytes for each image`);
  }
  return Array.from({ length: pixels.length / PIXELS }, (_, i) =>
    judge(activations(pixels.subarray(i * PIXELS, (i + 1) * PIXELS))));
}

globalThis.mnistFlax = { classNames, predict, activations };
