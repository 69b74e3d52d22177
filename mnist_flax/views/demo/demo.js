// The page to draw on. `answers` says what is on the board: a server (server.js), or the page itself (reading.js).

const answers = globalThis.answers;
const element = (id) => document.getElementById(id);
const board = element("board"), pen = board.getContext("2d", { willReadFrequently: true });
const SIDE = board.width; // in the board's own pixels
const SMALLER = 140; // side of the drawing that is read: five times what the network sees
const DARK = "#10151e", LIGHT = "#ffffff";

// ---- What is on the board: steps, of which the last can be undone, and what was undone.
// {points, width, ink} is a stroke; {picture, paper, ink, file, label} an opened image; {} an empty board.

let steps = [], undone = [];

function paint(step) {
  if (step.points) {
    pen.strokeStyle = step.ink;
    pen.lineWidth = step.width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    const [x, y] = step.points[0];
    pen.moveTo(x + 0.01, y); // or a dot, a line of no length, would not be drawn
    for (const point of step.points) pen.lineTo(...point);
    pen.stroke();
    return;
  }
  pen.fillStyle = step.paper ?? DARK;
  pen.fillRect(0, 0, SIDE, SIDE);
  if (!step.picture) return;
  const { width, height } = step.picture, scale = SIDE / Math.max(width, height);
  pen.imageSmoothingEnabled = width > 28; // a test image keeps its pixels
  const left = (SIDE - width * scale) / 2, top = (SIDE - height * scale) / 2;
  pen.drawImage(step.picture, left, top, width * scale, height * scale);
}

function repaint() {
  paint({});
  steps.forEach(paint);
}

function changed() {
  const last = steps.at(-1);
  element("hint").hidden = Boolean(last?.points || last?.file);
  for (const button of element("examples").children) {
    button.setAttribute("aria-pressed", String(button.dataset.file === last?.example));
  }
  element("undo").setAttribute("aria-disabled", String(!steps.length));
  element("redo").setAttribute("aria-disabled", String(!undone.length));
  shown = 0;
  ask();
}

function add(step) {
  steps.push(step);
  undone = [];
  paint(step);
  changed();
}

/** The last step of one list goes to the other. */
function move(from, to) {
  penDown = false;
  if (!from.length) return;
  to.push(from.pop());
  repaint();
  changed();
}
const undo = () => move(steps, undone), redo = () => move(undone, steps);

function clear() {
  if (steps.length && Object.keys(steps.at(-1)).length) add({});
}

function newStroke(point) {
  // Ink contrasts with the paper of the picture it is drawn on.
  const ink = steps.findLast((step) => !step.points)?.ink ?? LIGHT;
  add({ points: [point], width: Number(element("brush").value), ink });
}

function extendStroke(points) {
  const stroke = steps.at(-1);
  paint({ ...stroke, points: [stroke.points.at(-1), ...points] });
  stroke.points.push(...points);
  changed();
}

// ---- Mouse, pen and finger

let pointer = null; // the one that draws: {id, type, start}, without `start` once it has drawn
let penSeen = -Infinity; // when a pen was last near

const place = (event) => {
  const box = board.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
};

/** Whether a touch is that of a hand which holds a pen. */
const isPalm = (event) => event.pointerType === "touch" && event.timeStamp - penSeen < 2000;

board.addEventListener("pointerdown", (event) => {
  if (event.pointerType === "pen" && pointer?.type === "touch") {
    if (!pointer.start) undo();
    pointer = null;
  }
  if (pointer || event.button !== 0 || isPalm(event)) return;
  pointer = { id: event.pointerId, type: event.pointerType, start: place(event) };
  board.setPointerCapture(event.pointerId);
  element("pen").hidden = true;
  penDown = false;
});
board.addEventListener("pointermove", (event) => {
  if (event.pointerType === "pen") penSeen = event.timeStamp;
  if (event.pointerId !== pointer?.id) return;
  const events = event.getCoalescedEvents?.() ?? [];
  if (pointer.start) newStroke(pointer.start);
  pointer.start = null;
  extendStroke((events.length ? events : [event]).map(place));
});
board.addEventListener("pointerup", (event) => {
  if (event.pointerId !== pointer?.id) return;
  if (pointer.start) tap(pointer.start);
  pointer = null;
});
board.addEventListener("pointercancel", (event) => {
  if (event.pointerId === pointer?.id) pointer = null;
});

/** In a digit's box it shows that digit, elsewhere it draws a dot. */
function tap(point) {
  const digit = boxAt(...point.map((x) => x / SIDE));
  if (digit < 0) newStroke(point);
  else choose(digit);
}

// ---- Keyboard

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let at = [SIDE / 2, SIDE / 4], penDown = false;

function showPen() {
  const mark = element("pen");
  mark.hidden = false;
  mark.classList.toggle("down", penDown);
  mark.style.left = `${(100 * at[0]) / SIDE}%`;
  mark.style.top = `${(100 * at[1]) / SIDE}%`;
}

board.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer) return;
  if (event.key in ARROWS) {
    const step = event.shiftKey ? 4 : 20;
    at = at.map((x, axis) => Math.min(SIDE, Math.max(0, x + step * ARROWS[event.key][axis])));
    if (penDown) extendStroke([at]);
  } else if (event.key === " ") {
    penDown = !penDown;
    if (penDown) newStroke(at);
    say(penDown ? "Pen down" : "Pen up");
  } else if (event.key === "Delete" || event.key === "Backspace") {
    penDown = false;
    clear();
  } else return;
  event.preventDefault();
  showPen();
});
board.addEventListener("blur", () => {
  penDown = false;
  element("pen").hidden = true;
});
document.addEventListener("keydown", (event) => {
  const key = (event.ctrlKey || event.metaKey) && event.key.toLowerCase();
  if (key !== "z" && key !== "y") return;
  event.preventDefault();
  if (key === "y" || event.shiftKey) redo();
  else undo();
});
element("undo").addEventListener("click", undo);
element("redo").addEventListener("click", redo);
element("clear").addEventListener("click", clear);

// ---- Image files: opened, dropped, pasted, or one of the examples

async function open(file, example = null) {
  // Some systems do not know the type of HEIC files.
  if (file.type && !file.type.startsWith("image/")) return complain("That is not an image file.");
  if (file.size > model?.max_bytes) {
    return complain(`The picture is larger than ${model.max_bytes / 1e6} MB.`);
  }
  let picture = null, paper = DARK, ink = LIGHT;
  try {
    picture = await createImageBitmap(file);
    const corner = new OffscreenCanvas(1, 1).getContext("2d");
    corner.drawImage(picture, 0, 0);
    const [red, green, blue, alpha] = corner.getImageData(0, 0, 1, 1).data;
    // On grey both dark and light ink show, whichever it is that a transparent picture has.
    paper = alpha < 255 ? "#808080" : `rgb(${red} ${green} ${blue})`;
    ink = alpha === 255 && red + green + blue > 384 ? DARK : LIGHT;
  } catch {
    // The browser cannot show it (TIFF, say); a server may know better.
  }
  add({ picture, paper, ink, file, example: example?.file, label: example?.label });
}

function openFirst(files) {
  if (files.length) open(files[0]);
  else complain("That is not an image file.");
}

element("file").addEventListener("change", (event) => {
  openFirst(event.target.files);
  event.target.value = ""; // so that the same file can be opened again
});
document.addEventListener("paste", (event) => openFirst(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFirst(event.dataTransfer.files);
});

// ---- Asking: one question at a time, about the newest picture

let model = null, wanted = false, asking = false;
let shown = 0; // which of several digits
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const nextFrame = () => new Promise((resolve) => requestAnimationFrame(resolve));

function drawing() {
  const picture = new OffscreenCanvas(SMALLER, SMALLER);
  picture.getContext("2d").drawImage(board, 0, 0, SMALLER, SMALLER);
  return { picture };
}

async function ask() {
  wanted = true;
  if (asking) return;
  asking = true;
  document.body.classList.add("waiting");
  while (wanted) {
    await nextFrame();
    wanted = false;
    const last = steps.at(-1), started = performance.now();
    try {
      const answer = await answers.ask(last?.file ? last : drawing(), shown);
      complain("");
      show(answer, last, performance.now() - started);
    } catch (problem) {
      complain(problem.message);
      if (problem.again) {
        await wait(problem.again);
        wanted = true;
      } else show({ verdict: "unreadable", digits: [] });
    }
  }
  asking = false;
  document.body.classList.remove("waiting");
}

function choose(digit) {
  shown = digit;
  ask();
}

// ---- Showing the answer

const percent = (probability) => `${(100 * probability).toFixed(1)}\u00a0%`; // no line ends before the sign

function complain(sentence) {
  element("problem").textContent = sentence;
}

let saying;
function say(sentence) {
  // A screen reader hears what things have come to, not every change on the way.
  clearTimeout(saying);
  saying = setTimeout(() => (element("spoken").textContent = sentence), 600);
}

/** The digits in reading order, a line of text for each of theirs. */
function inLines(digits) {
  const lines = [];
  for (const { digit, line } of digits) (lines[line] ??= []).push(digit);
  return lines.map((line) => line.join(" ")).join("\n");
}

// What helps who draws; about a file the answer itself has a hint.
const HINTS = { "no ink": "Draw a digit on the board", "not like a digit": "No digit that it knows looks like this" };
const FEW = 4; // probabilities that can be taken in at a glance

function details(answer, ranked, hint) {
  const [first, second] = ranked.map(([name, probability]) => `${name} (${percent(probability)})`);
  if (answer.digits.length > FEW) {
    const { digit, probability } = answer.digits.reduce((a, b) => (b.probability < a.probability ? b : a));
    return `Least certain of ${answer.digits.length}: ${digit} (${percent(probability)})`;
  }
  if (answer.digits.length > 1) return answer.digits.map(({ probability }) => percent(probability)).join(", ");
  if (answer.digit !== null && ranked.length) return `${percent(ranked[0][1])}, then ${second}`;
  const sentence = hint ? `${hint[0].toUpperCase()}${hint.slice(1)}. ` : "";
  return sentence + (ranked.length ? `Perhaps ${first}, or ${second}` : "");
}

let boxes = []; // of the digits over the board, in shares of it
const boxAt = (x, y) => boxes.findIndex(([left, top, right, bottom]) => left < x && x < right && top < y && y < bottom);

/** Frames around digits, over the board, on which a picture may leave strips at two sides free. */
function showBoxes(digits, picture) {
  const { width, height } = picture ?? board, longer = Math.max(width, height);
  const across = width / longer, down = height / longer;
  boxes = digits.map(({ box: [left, top, right, bottom] }) => [
    (1 - across) / 2 + left * across, (1 - down) / 2 + top * down,
    (1 - across) / 2 + right * across, (1 - down) / 2 + bottom * down,
  ]);
  const frames = element("boxes"), focused = [...frames.children].findIndex((frame) => frame.matches(":focus-within"));
  frames.replaceChildren(...digits.map(({ digit }, i) => {
    const frame = document.createElement("div"), label = document.createElement("button");
    const [left, top, right, bottom] = boxes[i];
    const edges = { left, top, width: right - left, height: bottom - top };
    for (const [edge, share] of Object.entries(edges)) frame.style[edge] = `${100 * share}%`;
    frame.className = labelSide(i);
    label.type = "button";
    label.textContent = digit;
    label.setAttribute("aria-label", `${digit}: digit ${i + 1} of ${digits.length}`);
    label.setAttribute("aria-pressed", String(i === shown));
    label.addEventListener("click", () => choose(i));
    frame.append(label);
    return frame;
  }));
  frames.children[focused]?.firstChild.focus();
}

/** Where a box has room for its label on the board, beside other digits. */
function labelSide(i) {
  const [left, top, right, bottom] = boxes[i], size = 0.06; // of a label of one character
  const places = { above: [left, top - size], below: [left, bottom], before: [left - size, top], behind: [right, top] };
  const isFree = ([x, y]) => x >= 0 && y >= 0 && x + size <= 1 && y + size <= 1 && boxes.every((other, j) =>
    i === j || x + size < other[0] || x > other[2] || y + size < other[1] || y > other[3]);
  return Object.keys(places).find((side) => isFree(places[side])) ?? "above";
}

function show(answer, last, milliseconds) {
  const several = answer.digits.length > 1, digit = several ? inLines(answer.digits) : answer.digit;
  const ranked = Object.entries(answer.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  const verdict = answer.verdict[0].toUpperCase() + answer.verdict.slice(1);
  element("answer").textContent = digit ?? verdict;
  element("answer").className = (digit ?? verdict).length > 1 ? "words" : "";
  element("detail").textContent = details(answer, ranked, last?.file ? answer.hint : HINTS[answer.verdict]);
  if (last?.label !== undefined && ranked.length) {
    const note = document.createElement("span"), right = digit === last.label;
    note.className = right ? "right" : "wrong";
    note.textContent = right ? `. Its label: ${last.label}` : `. Wrong: its label is ${last.label}`;
    element("detail").append(note);
  }
  say(`${digit ?? verdict}. ${element("detail").textContent}`);
  element("detail").title = milliseconds ? `answered in ${milliseconds.toFixed(0)} ms` : "";
  element("detail").dataset.milliseconds = milliseconds ?? "";
  // A single digit that was drawn needs no box, nor does a test image: it fills the board.
  showBoxes(several || (last?.picture && !last.example) ? answer.digits : [], last?.picture);
  for (const note of document.querySelectorAll(".which")) {
    note.textContent = several ? `digit ${shown + 1} of ${answer.digits.length}` : "";
  }
  const { novelty } = answer;
  const score = novelty?.toFixed(2); // none without ink, or if the network has no reference for it
  element("novelty").textContent = score ? `Out-of-distribution score: ${score}` : "";
  element("novelty").classList.toggle("wrong", novelty > 1);

  for (const bar of element("bars").children) {
    const probability = answer.probabilities?.[bar.dataset.name] ?? 0;
    const [name, meter, value] = bar.children;
    for (const part of [name, value]) part.classList.toggle("first", bar.dataset.name === ranked[0]?.[0]);
    meter.setAttribute("aria-valuenow", probability.toFixed(3));
    meter.setAttribute("aria-valuetext", percent(probability));
    meter.firstChild.style.transform = `scaleX(${probability})`;
    value.textContent = ranked.length ? percent(probability) : "";
  }

  const seen = element("seen");
  seen.setAttribute("aria-label", answer.pixels ? "The picture in 28 by 28 pixels" : "Nothing: there is not one digit");
  drawTiles(seen, { width: 28, height: 28, channels: 1 }, answer.pixels, GREYS);
  for (const [index, block] of model.blocks.entries()) {
    drawTiles(element("maps").children[index].querySelector("canvas"), block, answer.maps?.[index].values, COLOURS);
  }
}

// From a byte to a colour; the second scale runs from the board's dark through blue and green to near white.
const scale = (stops) =>
  Array.from({ length: 256 }, (_, value) => {
    const position = (value / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(position), stops.length - 2), share = position - low;
    return stops[low].map((x, i) => x + share * (stops[low + 1][i] - x));
  });
const GREYS = scale([[16, 21, 30], [255, 255, 255]]);
const COLOURS = scale([[16, 21, 30], [38, 84, 138], [52, 150, 168], [120, 212, 180], [240, 253, 232]]);

/** Channels side by side, four to a row, a gap of a pixel between them; dark where there are no values. */
function drawTiles(canvas, { width, height, channels }, values, colours) {
  const columns = Math.min(channels, 4), rows = Math.ceil(channels / columns);
  canvas.width = columns * (width + 1) - 1;
  canvas.height = rows * (height + 1) - 1;
  const context = canvas.getContext("2d"), tile = context.createImageData(width, height);
  for (let channel = 0; channel < channels; channel++) {
    for (let i = 0; i < width * height; i++) {
      tile.data.set(colours[values ? values[channel * width * height + i] : 0], 4 * i);
      tile.data[4 * i + 3] = 255;
    }
    context.putImageData(tile, (channel % columns) * (width + 1), Math.floor(channel / columns) * (height + 1));
  }
}

// ---- The page itself

function build(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

async function start() {
  repaint();
  while (!model) {
    try {
      model = await answers.describe();
    } catch (problem) {
      complain(problem.message);
      await wait(problem.again);
    }
  }
  complain("");
  element("note").textContent = model.note ?? "";
  element("model").textContent = `${model.name} · ${model.accuracy}`;
  for (const name of model.class_names) {
    const bar = build(`<li><span class="name"></span><div class="meter" role="meter" aria-valuemin="0"
      aria-valuemax="1" aria-valuenow="0"><div></div></div><span class="value"></span></li>`);
    bar.dataset.name = bar.firstChild.textContent = name;
    bar.querySelector(".meter").setAttribute("aria-label", `Probability of ${name}`);
    element("bars").append(bar);
  }
  for (const block of model.blocks) {
    const size = `${block.height}×${block.width}×${block.channels}`;
    const figure = build(`<figure><figcaption><b>${block.name}</b>${size}</figcaption>
      <canvas role="img" aria-label="${block.channels} feature maps of ${block.name}"></canvas></figure>`);
    element("maps").append(figure);
    drawTiles(figure.querySelector("canvas"), block, null, COLOURS);
  }
  drawTiles(element("seen"), { width: 28, height: 28, channels: 1 }, null, GREYS);
  for (const { file, label, hard } of model.examples) {
    const button = build('<button type="button" aria-pressed="false"><img width="28" height="28"></button>');
    Object.assign(button.firstChild, { src: file, alt: `A ${label}` });
    button.dataset.file = file;
    button.classList.toggle("hard", hard);
    button.addEventListener("click", async () => open(await (await fetch(file)).blob(), { file, label }));
    element("examples").append(button);
  }
  const hard = model.examples.filter((example) => example.hard).length;
  element("hard").textContent = hard ? `the last ${hard} this network gets wrong` : "";
  element("examples").closest("section").hidden = !model.examples.length;
}

await start();
