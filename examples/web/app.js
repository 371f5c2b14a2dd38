// The page: a drawing or the camera's picture in, the network's answer out.
import {Classifier, LABELS, SIZE, garment, softmax} from './classifier.js';

const place = (id) => document.getElementById(id);
const picture = place('picture'), pen = picture.getContext('2d', {willReadFrequently: true});
const SHADE = '#c8c8c8';
const INTERVAL = 150;  // ms between two pictures of the camera

// Outlines of garments, in tenths of the picture.
const SAMPLES = {
  'T-shirt': [[3.4, 1.2], [4.2, 1.7], [5.8, 1.7], [6.6, 1.2], [9.2, 3.2], [8.2, 4.6], [7.1, 3.9], [7.1, 9], [2.9, 9],
    [2.9, 3.9], [1.8, 4.6], [0.8, 3.2]],
  'Trousers': [[3.5, 0.7], [6.5, 0.7], [7, 9.4], [5.6, 9.4], [5, 3.4], [4.4, 9.4], [3, 9.4]],
  'Dress': [[3.9, 0.7], [4.4, 1.9], [5.6, 1.9], [6.1, 0.7], [6.3, 3.6], [6, 4.6], [7.2, 9.4], [2.8, 9.4], [4, 4.6],
    [3.7, 3.6]],
  'Bag': [[0.8, 4.4], [3, 4.2], [3.6, 2], [6.4, 2], [7, 4.2], [9.2, 4.4], [9.2, 8.4], [0.8, 8.4]],
  'Ankle boot': [[5.6, 1.4], [9, 1.4], [9.1, 8.6], [7.4, 8.6], [7.2, 8], [5.5, 8.6], [0.9, 8.6], [0.9, 7.3], [3.4, 6.1],
    [5.3, 4.6]],
};
const HOLES = {'Bag': [[3.7, 4.2], [4.2, 2.6], [5.8, 2.6], [6.3, 4.2]]};

let classifier = null, busy = false, waiting = false, video = null;

function tell(problem) {
  place('problem').textContent = problem;
}

function clear() {
  pen.fillStyle = '#000';
  pen.fillRect(0, 0, picture.width, picture.height);
}

function outline(points, shade) {
  const scale = picture.width / 10;
  pen.fillStyle = shade;
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(scale * x, scale * y));
  pen.fill();
}

function draw(name) {
  stopCamera();
  clear();
  outline(SAMPLES[name], SHADE);
  if (HOLES[name]) outline(HOLES[name], '#000');
  classify();
}

function showSeen(pixels) {
  const seen = place('seen').getContext('2d'), image = seen.createImageData(SIZE, SIZE);
  (pixels ?? new Uint8Array(SIZE * SIZE)).forEach((value, at) => image.data.set([value, value, value, 255], 4 * at));
  seen.putImageData(image, 0, 0);
}

function showScores(scores) {
  const best = scores.indexOf(Math.max(...scores)), any = scores[best] > 0;
  place('name').textContent = any ? LABELS[best] : '–';
  [...place('scores').children].forEach((row, index) => {
    row.className = any && index === best ? 'first' : '';
    row.querySelector('b').style.width = `${100 * scores[index]}%`;
    row.querySelector('span').textContent = any ? `${(100 * scores[index]).toFixed(0)} %` : '';
  });
}

/** Shows what the network says of the picture; while it computes, the last picture waits. */
async function classify() {
  if (!classifier || busy) {
    waiting = true;
    return;
  }
  busy = true;
  do {
    waiting = false;
    const pixels = garment(pen.getImageData(0, 0, picture.width, picture.height));
    showSeen(pixels);
    if (!pixels) {
      showScores(LABELS.map(() => 0));
      continue;
    }
    const start = performance.now(), logits = await classifier.logits(pixels);
    place('time').textContent = `${(performance.now() - start).toFixed(1)} ms; left: what the network sees.`;
    showScores(softmax(logits));
  } while (waiting);
  busy = false;
}

/** Draws with the pointer; the line of each stroke is closed and filled. */
function drawByHand() {
  let stroke = null;
  const at = (event) => {
    const box = picture.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top].map((v) => v * picture.width / box.width);
  };
  picture.addEventListener('pointerdown', (event) => {
    stopCamera();
    picture.setPointerCapture(event.pointerId);
    stroke = new Path2D();
    stroke.moveTo(...at(event));
  });
  picture.addEventListener('pointermove', (event) => {
    if (!stroke) return;
    stroke.lineTo(...at(event));
    Object.assign(pen, {strokeStyle: SHADE, lineWidth: 10, lineCap: 'round', lineJoin: 'round'});
    pen.stroke(stroke);
  });
  const end = () => {
    if (!stroke) return;
    pen.fillStyle = SHADE;
    pen.fill(stroke);
    stroke = null;
    classify();
  };
  picture.addEventListener('pointerup', end);
  picture.addEventListener('pointercancel', end);
}

function stopCamera() {
  if (!video) return;
  video.srcObject.getTracks().forEach((track) => track.stop());
  video = null;
  place('camera').setAttribute('aria-pressed', 'false');
}

async function startCamera() {
  if (!navigator.mediaDevices) {
    tell('The camera takes a page over https or from localhost.');
    return;
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    video = Object.assign(document.createElement('video'), {srcObject: stream, muted: true, playsInline: true});
    await video.play();
  } catch (error) {
    tell(`The camera gives no picture: ${error.message}`);
    return;
  }
  tell('');
  place('camera').setAttribute('aria-pressed', 'true');
  for (const shown = video; video === shown;) {
    const {videoWidth: width, videoHeight: height} = video, side = Math.min(width, height);
    pen.drawImage(video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, picture.width, picture.height);
    await classify();
    await new Promise((resolve) => setTimeout(resolve, INTERVAL));
  }
}

function build() {
  for (const name of Object.keys(SAMPLES)) {
    const button = Object.assign(document.createElement('button'), {textContent: name});
    button.addEventListener('click', () => draw(name));
    place('samples').append(button);
  }
  for (const label of LABELS) {
    const row = document.createElement('li'), bar = document.createElement('i');
    bar.append(document.createElement('b'));
    row.append(label, bar, document.createElement('span'));
    place('scores').append(row);
  }
  place('clear').addEventListener('click', () => {
    stopCamera();
    clear();
    classify();
  });
  place('camera').addEventListener('click', () => video ? stopCamera() : startCamera());
  drawByHand();
}

build();
draw('T-shirt');
try {
  classifier = await Classifier.load('./model.tflite', new URL('./litertjs/core/wasm/', location).href);
  place('facts').textContent = `model.tflite: ${(classifier.bytes / 1000).toFixed(1)} kB, trained on ` +
      'Fashion-MNIST: small photographs of ten kinds of garments. It has never seen a drawing.';
  classify();
} catch (error) {
  tell(`${error.message}: examples/README.md has the commands that make model.tflite and copy LiteRT.js.`);
}
