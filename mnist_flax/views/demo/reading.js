// The digits of a drawing, by the page itself: which parts of the ink are digits, as mnist_flax/reading judges it
// (parts.py, candidates.py, proposals.py, scoring.py, reader.py), of one tone: plain ink on plain paper.

const { asItIs, bounds, border, clip, cut, depths, draw, greyOf, inkOf, longer, map, median } = globalThis.drawing;
const mnistFlax = globalThis.mnistFlax;
const about = JSON.parse(document.getElementById("about").textContent);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const best = (items, value) => items.reduce((a, b) => (value(b) > value(a) ? b : a));

// ---- Boxes

const width = (box) => box.right - box.left, height = (box) => box.bottom - box.top;
const longest = (box) => Math.max(width(box), height(box)), shortest = (box) => Math.min(width(box), height(box));
const isThin = (box) => shortest(box) < 0.3 * longest(box);
const encloses = (a, b) => a.left <= b.left && a.top <= b.top && a.right >= b.right && a.bottom >= b.bottom;
const touchesBorder = (box, image) =>
  box.left <= 1 || box.top <= 1 || box.right >= image.width - 1 || box.bottom >= image.height - 1;
const join = (a, b) => ({
  left: Math.min(a.left, b.left), top: Math.min(a.top, b.top),
  right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
});

// ---- Parts: what hangs together

const MAX_PARTS = 150; // more are a texture, or text
const SPECK = 0.04, SPECK_SIDE = 0.3; // shares of the largest part's area and longer side: less is dirt
const PALE = 0.75; // parts paler than this share of the largest one's ink are no ink
const NEAR = 0.3; // parts nearer to each other than this share of their height may be one digit
const MAX_STROKES = 5; // of one digit

/** {ink, labels, parts, kept}: the parts of an image's ink without specks, and the share of the ink that they have. */
function findParts(ink) {
  const labels = map(ink, () => 0), all = [];
  ink.values.forEach((value, start) => {
    if (value <= 0.5 || labels.values[start]) return;
    const nowhere = { left: Infinity, top: Infinity, right: 0, bottom: 0 };
    const part = { label: all.length + 1, area: 0, strength: 0, box: nowhere };
    labels.values[start] = part.label;
    for (const open = [start]; open.length; ) {
      const i = open.pop(), x = i % ink.width, y = Math.floor(i / ink.width);
      part.area++;
      part.strength += ink.values[i];
      part.box = join(part.box, { left: x, top: y, right: x + 1, bottom: y + 1 });
      for (let v = Math.max(0, y - 1); v <= Math.min(ink.height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(ink.width - 1, x + 1); u++) {
          const next = v * ink.width + u;
          if (ink.values[next] <= 0.5 || labels.values[next]) continue;
          labels.values[next] = part.label;
          open.push(next);
        }
      }
    }
    all.push(part);
  });
  if (!all.length) return { ink, labels, parts: [], kept: 0 };
  const largest = best(all, (part) => part.area), strength = (part) => part.strength / part.area;
  const parts = all.filter((part) =>
    (part.area >= SPECK * largest.area || longest(part.box) >= SPECK_SIDE * longest(largest.box)) &&
    strength(part) >= PALE * strength(largest));
  return { ink, labels, parts, kept: sum(parts.map(({ area }) => area)) / sum(all.map(({ area }) => area)) };
}

/** Parts that may be one digit: {parts, box, ink, area}, the ink with its soft edges, cropped to the box. */
function group(found, parts) {
  const box = parts.map((part) => part.box).reduce(join), margin = 3;
  const around = [box.left - margin, box.top - margin, width(box) + 2 * margin, height(box) + 2 * margin];
  const labels = cut(found.labels, ...around), ink = cut(found.ink, ...around), kept = map(ink, () => 0);
  const own = new Set(parts.map((part) => part.label));
  labels.values.forEach((label, i) => {
    if (!own.has(label)) return;
    const x = i % ink.width, y = Math.floor(i / ink.width);
    for (let v = Math.max(0, y - margin); v <= Math.min(ink.height - 1, y + margin); v++) {
      const reach = margin - Math.abs(v - y);
      for (let u = Math.max(0, x - reach); u <= Math.min(ink.width - 1, x + reach); u++) {
        const near = v * ink.width + u;
        if (!labels.values[near] || own.has(labels.values[near])) kept.values[near] = ink.values[near];
      }
    }
  });
  const cropped = cut(kept, margin, margin, width(box), height(box));
  return { parts, box, ink: cropped, area: sum(parts.map(({ area }) => area)) };
}

/** Whether two parts may be strokes of one digit: they overlap across, or the gap between them is small. */
function areNear({ box: a }, { box: b }) {
  const across = Math.max(a.left, b.left) - Math.min(a.right, b.right); // negative: they overlap
  const down = Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  const tall = Math.max(height(a), height(b), Math.floor(Math.max(width(a), width(b)) / 2));
  // Two halves of a zero are far apart, but narrow and equally tall.
  const halves = [a, b].every((box) => width(box) < 0.5 * tall && height(box) > 0.7 * tall);
  return across < (halves ? 0.5 : 0.08) * tall && down < NEAR * tall;
}

/** Items in groups, in their order: any two that are related are in one. */
function clusters(items, areRelated) {
  const found = items.reduce((before, item) => {
    const isJoined = (cluster) => cluster.some((other) => areRelated(item, other));
    return [...before.filter((cluster) => !isJoined(cluster)), [...before.filter(isJoined).flat(), item]];
  }, []);
  const place = (item) => items.indexOf(item);
  return found.map((cluster) => cluster.sort((a, b) => place(a) - place(b))).sort(([a], [b]) => place(a) - place(b));
}

/** The ways in which a cluster's parts may be digits: each alone, all as one, or two groups. */
function partitions(cluster) {
  const ways = [cluster.map((part) => [part])], few = cluster.length <= MAX_STROKES;
  if (cluster.length > 1 && few) ways.push([cluster]);
  if (cluster.length < 3 || !few) return ways;
  for (let chosen = 1; chosen < 2 ** (cluster.length - 1); chosen++) { // the last part is in the second group
    const isChosen = (_, i) => Boolean((chosen >> i) & 1);
    ways.push([cluster.filter(isChosen), cluster.filter((part, i) => !isChosen(part, i))]);
  }
  return ways;
}

/** The ways in which a wide group may be two touching digits side by side: cut where there is least ink. */
function cuts(one) {
  const { ink } = one;
  if (ink.width < 0.9 * ink.height || ink.width < 8) return [];
  const first = Math.trunc(0.25 * ink.width), last = Math.trunc(0.75 * ink.width);
  const columns = Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const amount = (x) => cut(ink, x, 0, 1, ink.height).values.filter((value) => value > 0.5).length;
  const amounts = new Map(columns.map((x) => [x, amount(x)])), chosen = [];
  for (const x of columns.sort((a, b) => amounts.get(a) - amounts.get(b))) {
    if (chosen.length < 4 && chosen.every((other) => Math.abs(x - other) > ink.width / 12)) chosen.push(x);
  }
  return chosen.map((x) => [half(one, 0, x), half(one, x, ink.width)]).filter(([a, b]) => a && b);
}

function half(one, start, stop) {
  const ink = cut(one.ink, start, 0, stop - start, one.ink.height), box = bounds(ink, 0.5);
  if (!box) return null;
  const left = one.box.left + start, { top } = one.box;
  const place = { left: left + box.left, top: top + box.top, right: left + box.right, bottom: top + box.bottom };
  const area = ink.values.filter((value) => value > 0.5).length;
  return { parts: one.parts, box: place, ink: cut(ink, box.left, box.top, width(box), height(box)), area };
}

// ---- Drawings judged by the network

const THICK = 6; // half the width of a stroke that no pen has, in MNIST's pixels
const CLEAR = 0.6; // with a lower probability the network is guessing
const known = new Map(); // answers of the network: while a digit is drawn the others stay as they are

function ask(pixels) {
  const key = String(pixels);
  if (known.size > 500) known.clear();
  if (!known.has(key)) known.set(key, mnistFlax.predict(pixels)[0]);
  return known.get(key);
}

/** A group, drawn and judged: {group, pixels, digit, probabilities, novelty, thickness, quality, isNamed}. */
function judge(one, pixels = draw(one.ink)) {
  const { digit, probabilities, novelty: score } = ask(pixels), novelty = score ?? 0, top = Math.max(...probabilities);
  const solid = { width: 28, height: 28, values: Float32Array.from(pixels, (x) => x > 127) };
  const thickness = Math.max(...depths(solid));
  const quality = thickness > THICK ? 0 : clip((1.3 - novelty) / 0.5, 0, 1) * clip((top - 0.4) / 0.5, 0, 1);
  const isNamed = novelty <= 1 && top >= CLEAR && quality > 0;
  return { group: one, pixels, digit, probabilities, top, novelty, thickness, quality, isNamed };
}

// ---- Ways to read the ink, each with a score

const ODDS_OF_ONE = 10; // logarithm of the odds that a picture of a data set shows one digit
const SMALL = 32; // the longest side of such a picture
const { bias, weights } = about.scoring; // those of scoring.py
const PEN = 3, SAME = 0.1, EXTREME = 0.1, MAX_NOVELTY = 3, MAX_THICK = 4, MAX_SOFT = 6;

const areaOf = (digits) => sum(digits.map(({ group }) => group.area));

/** The share of the ink of some digits that looks like digits. */
const explained = (digits) =>
  sum(digits.map(({ group, quality }) => group.area * quality)) / Math.max(areaOf(digits), 1);

/** How well parts are explained as these digits. One good digit is better than several. */
function value(way) {
  const one = way.length === 1 && way[0].group.parts.length > 1;
  return explained(way) + (one ? (isThin(way[0].group.box) ? -0.1 : 0.1) : 0);
}

/** The log odds that a picture, of these grey levels, shows these digits and nothing else. */
function score(grey, found, digits) {
  const boxes = digits.map(({ group }) => group.box), area = areaOf(digits);
  const sorted = (values) => values.sort((a, b) => a - b);
  const low = (values) => sorted(values)[Math.floor((values.length - 1) * EXTREME)];
  const high = (values) => sorted(values)[Math.ceil((values.length - 1) * (1 - EXTREME))];
  const mean = (of) => sum(digits.map((digit) => (of(digit) * digit.group.area) / Math.max(area, 1)));
  const sizes = digits.filter(({ isNamed }) => isNamed).map(({ group }) => longest(group.box));
  const few = boxes.slice(0, 20);
  const features = {
    kept: (found.kept * area) / Math.max(sum(found.parts.map((part) => part.area)), 1),
    novelty: mean(({ novelty }) => Math.min(novelty, MAX_NOVELTY)),
    worst: low(digits.map(({ quality }) => quality)),
    thin: mean(({ group }) => isThin(group.box)),
    common: mean(({ group }) => common(grey, group)),
    enclosing: few.some((a) => few.some((b) => a !== b && encloses(a, b))),
    border: Math.max(...digits.map(({ group }) => borderShare(found, group))),
    thick: clip(Math.max(...digits.map(({ thickness }) => thickness)) - PEN, 0, MAX_THICK),
    soft: mean(({ group }) => Math.min(softness(group), MAX_SOFT)),
    spread: sizes.length ? Math.log(high(sizes) / low(sizes)) : 0,
  };
  return bias + sum(Object.entries(features).map(([name, feature]) => weights[name] * feature));
}

/** The share of the picture that is hardly lighter or darker than a group's ink. */
function common(grey, { box, ink }) {
  const inBox = cut(grey, box.left, box.top, width(box), height(box));
  const own = median(inBox.values.filter((_, i) => ink.values[i] > 0.5));
  const some = grey.values.filter((_, i) => (i % grey.width) % 2 === 0 && Math.floor(i / grey.width) % 2 === 0);
  return some.filter((value) => Math.abs(value - own) < SAME).length / some.length;
}

function borderShare({ labels }, { parts }) {
  const around = border(labels), own = new Set(parts.map(({ label }) => label));
  return around.filter((label) => own.has(label)).length / around.length;
}

/** The number of pixels between ink and paper for each pixel of the ink's outline. */
function softness({ ink }) {
  const solid = cut(ink, -1, -1, ink.width + 2, ink.height + 2), { values } = solid;
  const steps = [1, -1, solid.width, -solid.width];
  const isOutline = (value, i) => value > 0.5 && steps.some((step) => values[i + step] <= 0.5);
  return values.filter((value) => value > 0.15 && value < 0.85).length / Math.max(values.filter(isOutline).length, 1);
}

/** Some parts as digits, each cluster of them divided in the best way. */
function bestPartition(found, parts) {
  const judgeAll = (way) => way.map((part) => judge(group(found, part)));
  let digits = clusters(parts, areNear).flatMap((cluster) => best(partitions(cluster).map(judgeAll), value));
  digits = digits.flatMap(cutWhereTouching);
  const isFrame = (digit) => digit.quality < 0.5 &&
    digits.some((other) => other !== digit && encloses(digit.group.box, other.group.box));
  return withoutStrips(digits.filter((digit) => !isFrame(digit)), found.ink);
}

/** A drawing that is no digit as two that touch, if both of these are. */
function cutWhereTouching(digit) {
  if (digit.quality > 0.5 || digit.thickness > THICK) return [digit];
  const worst = (pair) => Math.min(...pair.map(({ quality }) => quality));
  const pairs = cuts(digit.group).map((pair) => pair.map((one) => judge(one))).filter((pair) => worst(pair) > 0.6);
  return pairs.length ? best(pairs, worst) : [digit];
}

/** Digits without what only looks like one beside them: a piece of a line. */
function withoutStrips(digits, image) {
  if (digits.length < 2) return digits;
  const some = (chosen) => (chosen.length ? chosen : digits);
  digits = some(digits.filter(({ group }) => !touchesBorder(group.box, image)));
  const good = digits.filter(({ quality, group }) => quality > 0.5 && !isThin(group.box));
  const usual = median(good.map(({ group }) => longest(group.box)));
  const isLine = (box) => isThin(box) && longest(box) > (shortest(box) / longest(box) < 0.12 ? 1.12 : 1.3) * usual;
  return good.length ? some(digits.filter(({ group }) => !isLine(group.box))) : digits;
}

/** The ways to read the ink, as lists of digits. */
function readings(found) {
  const { parts } = found, inner = parts.filter(({ box }) => !touchesBorder(box, found.ink));
  if (!parts.length || parts.length > MAX_PARTS) return [];
  const ways = [bestPartition(found, parts)];
  const isExplained = explained(ways[0]) >= 0.8;
  if (inner.length && inner.length < parts.length) ways.push(bestPartition(found, inner));
  if (parts.length < 2 || isExplained) return ways;
  if (parts.length <= 6) ways.push([judge(group(found, parts))]);
  return [...ways, [judge(group(found, [best(parts, ({ area }) => area)]))]];
}

/** {digits, score} of the best way to read a picture; null if nothing in it can be a digit. */
function bestReading(grey, ink) {
  const found = findParts(ink);
  if (longer(grey) > SMALL) {
    const ways = readings(found).map((digits) => ({ digits, score: score(grey, found, digits) }));
    return ways.length ? best(ways, (way) => way.score) : null;
  }
  if (!found.parts.length) return null;
  const all = group(found, found.parts), original = asItIs(grey);
  const drawings = [...(original ? [judge(all, original)] : []), judge(all)];
  const digits = [drawings.find(({ isNamed }) => isNamed) ?? drawings[0]];
  return { digits, score: score(grey, found, digits) + ODDS_OF_ONE };
}

// ---- The answer

/** Whether two digits stand in one line: they overlap in height, and not across; an exponent may be higher. */
function areBeside({ group: { box: a } }, { group: { box: b } }) {
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  if (across > 0.5 * Math.min(width(a), width(b))) return false;
  const small = Math.min(height(a), height(b)), large = Math.max(height(a), height(b));
  return down > 0.35 * small || (small < 0.7 * large && down > -0.2 * large && across > -0.6 * large);
}

/** Digits line by line, from left to right, each with the number of its line. */
function inReadingOrder(digits) {
  const middle = (line) => sum(line.map(({ group: { box } }) => (box.top + box.bottom) / 2)) / line.length;
  const lines = clusters(digits, areBeside).sort((a, b) => middle(a) - middle(b));
  return lines.flatMap((digits, line) =>
    digits.sort((a, b) => a.group.box.left - b.group.box.left).map((digit) => ({ ...digit, line })));
}

/** {verdict, digits, best}: the digits of a picture in reading order, or why there are none. */
function read(grey) {
  const ink = inkOf(grey), reading = ink && bestReading(grey, ink);
  if (!reading) return { verdict: ink ? "not like a digit" : "no ink", digits: [], best: null };
  const named = reading.digits.filter(({ isNamed }) => isNamed);
  const likeliest = best(reading.digits, ({ quality }) => quality);
  if (!named.length || reading.score < 0) {
    const isDigit = likeliest.novelty <= 1 && likeliest.top < CLEAR;
    return { verdict: isDigit ? "unclear" : "not like a digit", digits: [], best: likeliest };
  }
  return { verdict: named.length === 1 ? "digit" : "several digits", digits: inReadingOrder(named), best: likeliest };
}

/** Bytes for numbers from 0; 255 is the largest. */
function quantised(values) {
  const most = values.reduce((a, b) => Math.max(a, b), 1e-6);
  return new Uint8Array(values.map((value) => Math.round((value * 255) / most)));
}

/** The answer about a canvas's pixels, as the server has it: `look` in mnist_flax/views/page.py. */
function look(image, shown) {
  const grey = greyOf(image), { verdict, digits, best } = read(grey), seen = digits[shown] ?? digits[0] ?? best;
  const share = ({ left, top, right, bottom }) =>
    [left / grey.width, top / grey.height, right / grey.width, bottom / grey.height];
  const maps = seen?.pixels && mnistFlax.activations(seen.pixels);
  return {
    verdict,
    digit: digits.length === 1 ? digits[0].digit : null,
    digits: digits.map(({ digit, top, line, group }) => ({ digit, probability: top, line, box: share(group.box) })),
    probabilities: seen && Object.fromEntries(mnistFlax.classNames.map((name, i) => [name, seen.probabilities[i]])),
    novelty: seen?.novelty,
    hint: digits.length ? "" : "this page reads ink on plain paper, no photographs",
    pixels: seen?.pixels ?? null,
    maps: maps?.map((block) => ({ ...block, values: quantised(block.values) })) ?? null,
  };
}

const WORKING_SIDE = 448; // larger images are reduced to this

/** The pixels of a picture on paper, at a size to work at. */
function pixelsOf({ picture, paper }) {
  const shrink = Math.min(1, WORKING_SIDE / longer(picture));
  const sides = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * shrink)));
  const context = new OffscreenCanvas(...sides).getContext("2d");
  context.fillStyle = paper ?? "#000";
  context.fillRect(0, 0, ...sides);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, ...sides);
  return context.getImageData(0, 0, ...sides);
}

globalThis.answers = {
  look,
  describe: async () => ({
    ...about,
    note: "This page works by itself: nothing that you draw or open leaves your device. It reads ink on plain paper. " +
      "For photographs install mnist_flax, and run: mnist-flax demo",
  }),
  async ask(image, shown) {
    if (!image.picture) throw new Error("This browser cannot show such a file, so that the page cannot read it.");
    return look(pixelsOf(image), shown);
  },
};
