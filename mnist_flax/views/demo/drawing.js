// Ink, and drawings of it in MNIST's geometry: mnist_flax/reading/drawing.py, and of ink.py the likeliest tone.
// An image is {width, height, values}, row after row.

const LUMINANCE = [0.299, 0.587, 0.114]; // ITU-R BT.601
const MIN_CONTRAST = 0.1; // of black to white
const SIDE = 28;
const SMALL = 80; // larger drawings are first reduced to this
const FAINT = 0.1; // ink that does not count for the size of a digit

const empty = (width, height) => ({ width, height, values: new Float32Array(width * height) });
const map = (image, change) => ({ ...image, values: image.values.map(change) });
const clip = (x, low, high) => Math.min(Math.max(x, low), high);
const longer = ({ width, height }) => Math.max(width, height);

/** The nearest integer; of two, the even one. */
function rint(x) {
  const nearest = Math.round(x);
  return nearest - x === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}

/** A quantile of sorted numbers, between two of them if need be. */
function quantile(sorted, share) {
  const at = (sorted.length - 1) * share, low = Math.floor(at);
  return sorted[low] + (sorted[Math.ceil(at)] - sorted[low]) * (at - low);
}
const median = (values) => quantile(Float32Array.from(values).sort(), 0.5);

/** A rectangle of an image, with zeros where it reaches beyond. */
function cut(image, left, top, width, height) {
  const result = empty(width, height);
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y++) {
    for (let x = Math.max(0, -left); x < Math.min(width, image.width - left); x++) {
      result.values[y * width + x] = image.values[(y + top) * image.width + x + left];
    }
  }
  return result;
}

/** The box around all numbers above a threshold; without any it is null. */
function bounds({ width, values }, threshold) {
  let left = Infinity, top = Infinity, right = 0, bottom = 0;
  values.forEach((value, i) => {
    if (!(value > threshold)) return;
    const x = i % width, y = Math.floor(i / width);
    left = Math.min(left, x);
    top = Math.min(top, y);
    right = Math.max(right, x + 1);
    bottom = Math.max(bottom, y + 1);
  });
  return right ? { left, top, right, bottom } : null;
}

function transpose({ width, height, values }) {
  const turned = values.map((_, i) => values[(i % height) * width + Math.floor(i / height)]);
  return { width: height, height: width, values: turned };
}

/** A function of rows done to the rows, and then to the columns. */
const bothWays = (image, alongRows) => transpose(alongRows(transpose(alongRows(image, 0)), 1));

/** Reduced or enlarged so that the longer side is `side`; a pixel is the mean of what it covers: Pillow's BILINEAR. */
function resized(image, side) {
  const unit = longer(image) / side;
  const sides = [image.width, image.height].map((length) => Math.max(1, rint(length / unit)));
  return bothWays(image, ({ width, height, values }, axis) => {
    const result = empty(sides[axis], height), step = width / result.width, reach = Math.max(step, 1);
    for (let x = 0; x < result.width; x++) {
      const centre = (x + 0.5) * step, first = Math.max(0, Math.trunc(centre - reach + 0.5));
      const covered = Math.min(width, Math.trunc(centre + reach + 0.5)) - first;
      const weights = Array.from({ length: covered }, (_, i) =>
        Math.max(0, 1 - Math.abs(first + i + 0.5 - centre) / reach));
      const total = weights.reduce((a, b) => a + b);
      for (let y = 0; y < height; y++) {
        result.values[y * result.width + x] =
          weights.reduce((sum, weight, i) => sum + (weight / total) * values[y * width + first + i], 0);
      }
    }
    return result;
  });
}

/** The largest number of the square that reaches `reach` pixels to each side. */
function dilated(image, reach) {
  return bothWays(image, ({ width, height, values }) => ({
    width,
    height,
    values: values.map((_, i) => {
      const x = i % width, start = i - x;
      return Math.max(...values.subarray(start + Math.max(0, x - reach), start + Math.min(width, x + reach + 1)));
    }),
  }));
}

/** Each pixel's distance from the nearest zero. */
function depths({ width, height, values }) {
  const down = values.map((value) => (value ? Infinity : 0)); // from the nearest in the column
  for (let i = width; i < down.length; i++) down[i] = Math.min(down[i], down[i - width] + 1);
  for (let i = down.length - width - 1; i >= 0; i--) down[i] = Math.min(down[i], down[i + width] + 1);
  return values.map((_, i) => {
    const x = i % width, start = i - x;
    let nearest = Infinity;
    for (let other = 0; other < width; other++) {
      nearest = Math.min(nearest, (x - other) ** 2 + down[start + other] ** 2);
    }
    return Math.sqrt(nearest);
  });
}

/** Ink in 0..1 of at most 28×28 pixels as bytes, its centre of mass as near the middle as it fits. */
function centredByMass(ink) {
  let mass = 0, x = 0, y = 0;
  ink.values.forEach((value, i) => {
    mass += value;
    x += value * (i % ink.width);
    y += value * Math.floor(i / ink.width);
  });
  const [left, top] = [[x / mass, ink.width], [y / mass, ink.height]].map(([centre, size]) =>
    clip(rint(SIDE / 2 - 0.5 - centre), 0, SIDE - size));
  return asBytes(cut(ink, -left, -top, SIDE, SIDE));
}

const asBytes = ({ values }) => new Uint8Array(values.map((value) => rint(255 * clip(value, 0, 1))));

/** Ink in 0..1, cropped to its bounding box, drawn as MNIST would: 28×28 bytes. A thinner pen is made as wide. */
function draw(ink) {
  if (longer(ink) > SMALL) ink = resized(ink, SMALL);
  const unit = longer(ink) / 20; // one pixel of the result
  const solid = cut(map(ink, (x) => x > 0.5), -1, -1, ink.width + 2, ink.height + 2);
  const inside = depths(solid).filter((depth) => depth > 0).sort();
  if (inside.length) {
    const grow = rint((2 * unit - 2 * quantile(inside, 0.9)) / 2);
    if (grow > 0) ink = dilated(cut(ink, -grow, -grow, ink.width + 2 * grow, ink.height + 2 * grow), grow);
  }
  const small = resized(ink, 20), most = Math.max(...small.values, 1e-6);
  return centredByMass(map(small, (x) => x / most));
}

/** A picture that is drawn as MNIST's are, light on dark or turned round, without drawing it again; else null. */
function asItIs(grey) {
  if (grey.width !== SIDE || grey.height !== SIDE) return null;
  const ink = median(grey.values) < 0.5 ? grey : map(grey, (x) => 1 - x), box = bounds(ink, FAINT);
  const side = box && Math.max(box.right - box.left, box.bottom - box.top);
  if (!box || side < 18 || side > 21) return null;
  const sum = (weigh) => ink.values.reduce((total, value, i) => total + value * weigh(i), 0), mass = sum(() => 1);
  const offsets = [(i) => i % SIDE, (i) => Math.floor(i / SIDE)].map((place) => sum(place) / mass - (SIDE - 1) / 2);
  return offsets.every((offset) => Math.abs(offset) <= 1.5) ? asBytes(ink) : null;
}

/** Grey levels in 0..1 of a canvas's pixels. */
function greyOf({ width, height, data }) {
  const grey = empty(width, height);
  grey.values.forEach((_, i) => {
    grey.values[i] = LUMINANCE.reduce((sum, share, colour) => sum + (share * data[4 * i + colour]) / 255, 0);
  });
  return grey;
}

/** The border's pixels of an image, row after row; corners count twice. */
function border({ width, height, values }) {
  const column = (x) => Array.from({ length: height }, (_, y) => values[y * width + x]);
  return [...values.subarray(0, width), ...values.subarray(-width), ...column(0), ...column(width - 1)];
}

/** Ink in 0..1: what is darker or lighter than the border, whichever differs more. Null if there is none. */
function inkOf(grey) {
  const paper = median(border(grey));
  const difference = map(grey, (x) => x - paper);
  const [darkest, lightest] = [Math.min, Math.max].map((extreme) => difference.values.reduce((a, b) => extreme(a, b)));
  const sign = -darkest > lightest ? -1 : 1;
  const contrast = map(difference, (x) => Math.max(sign * x, 0));
  const { values } = contrast, most = Math.max(12, Math.floor(values.length / 500));
  const strongest = median(values.slice().sort().subarray(-most));
  if (strongest < MIN_CONTRAST) return null;
  return map(contrast, (x) => clip((x / strongest - 0.2) / 0.6, 0, 1));
}

globalThis.drawing = { asItIs, bounds, border, clip, cut, depths, draw, greyOf, inkOf, longer, map, median };
