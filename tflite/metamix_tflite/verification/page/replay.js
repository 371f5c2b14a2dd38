// Replays golden inputs in LiteRT.js and times the files; plan.json says which, and what comes out.
import {Tensor, loadAndCompile, loadLiteRt, unloadLiteRt} from '@litertjs/core';

const WASM = './litertjs/core/wasm/';
const SCRIPTS = {
  relaxed: 'litert_wasm_internal.js',
  compat: 'litert_wasm_compat_internal.js',
  threads: 'litert_wasm_threaded_internal.js',
};
const ARRAYS = {float32: Float32Array, uint8: Uint8Array};
const TICKS = 20;  // of the clock, that a timed sample takes at least
const place = (id) => document.getElementById(id);
const now = () => performance.now();

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response;
}

/** The images of a file, each an array for each of its inputs. */
async function readImages(file) {
  const content = await (await fetched(file.images)).arrayBuffer();
  const images = [];
  for (let start = 0; start < content.byteLength;) {
    images.push(file.inputs.map(({shape, type}) => {
      const array = ARRAYS[type], size = shape.reduce((a, b) => a * b, 1);
      const bytes = content.slice(start, start + size * array.BYTES_PER_ELEMENT);
      start += bytes.byteLength;
      return new array(bytes);
    }));
  }
  return images;
}

/** One inference, from the arrays of an image to those of the outputs. */
async function infer(loaded, image) {
  const {file, model} = loaded;
  const named = Object.fromEntries(file.inputs.map(
      ({name, shape}, index) => [name, new Tensor(image[index], shape)]));
  const found = await (file.signature ? model.run(file.signature, named) : model.run(named));
  const outputs = file.outputs.map(({name}) => found[name].toTypedArray().slice());
  for (const tensor of [...Object.values(named), ...Object.values(found)]) tensor.delete();
  return outputs;
}

/** The nearest integer, of two the even one. */
function nearest(x) {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** How many of an image's values are not the golden codes, and by how many steps at most. */
function compare(golden, number, outputs) {
  let values = 0, differing = 0, largest = 0;
  golden.forEach(({codes, stride, grid}, output) => {
    codes[number].forEach((expected, index) => {
      let code = outputs[output][index * stride];
      if (grid) code = nearest(Math.fround(code / Math.fround(grid[0]))) + grid[1];
      const steps = Number.isFinite(code) ? Math.abs(code - expected) : 2 ** 20;
      values += 1;
      differing += steps ? 1 : 0;
      largest = Math.max(largest, steps);
    });
  });
  return {values, differing, largest};
}

async function replay(loaded) {
  const {file, images} = loaded, sum = {values: 0, differing: 0, largest: 0, outputs: []};
  for (let number = 0; number < file.golden[0].codes.length; number++) {
    const outputs = await infer(loaded, images[number]);
    const found = compare(file.golden, number, outputs);
    sum.values += found.values;
    sum.differing += found.differing;
    sum.largest = Math.max(sum.largest, found.largest);
    sum.outputs.push(outputs.map(base64));
  }
  return sum;
}

function base64(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** The step of the clock in ms: browsers make it coarse where a page is not isolated. */
function clockStep() {
  let step = Infinity;
  for (let count = 0; count < 5; count++) {
    const start = now();
    let end = start;
    while (end === start) end = now();
    step = Math.min(step, end - start);
  }
  return step;
}

async function timed(loaded, repeats) {
  const image = loaded.images.at(-1), start = now();
  for (let count = 0; count < repeats; count++) await infer(loaded, image);
  return (now() - start) / repeats;
}

/** Times of all files in ms: they take turns, so that the machine's drift falls on all alike. */
async function measure(files, runs, warmup, tell) {
  const step = clockStep(), times = files.map(() => []), repeats = [];
  for (const loaded of files) {
    await timed(loaded, 1);
    repeats.push(Math.ceil(TICKS * step / Math.max(await timed(loaded, 1), step)));
  }
  for (let run = 0; run < warmup + runs; run++) {
    for (const [index, loaded] of files.entries()) {
      const time = await timed(loaded, repeats[index]);
      if (run >= warmup) times[index].push(time);
    }
    if (run % 10 === 0) await tell(`inference ${run} of ${warmup + runs}`);
  }
  return times;
}

async function tell(text) {
  place('verdict').textContent = text;
  await new Promise((resolve) => setTimeout(resolve));  // so that it is drawn
}

/** Loads a build of LiteRT.js: from a file of the plan to its compiled model. */
async function load(plan, build) {
  if (build === 'threads' && !crossOriginIsolated) {
    throw new Error('threads need a page over https or from localhost, with the headers ' +
        'Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp');
  }
  const cpus = navigator.hardwareConcurrency;
  if (build === 'threads' && plan.threads > cpus) {
    throw new Error(`expected at most ${cpus} threads, the logical CPUs here, found ${plan.threads}`);
  }
  await loadLiteRt(new URL(WASM + SCRIPTS[build], location).href);
  const models = new Map(), threads = build === 'threads' ? plan.threads : 1;
  return async (file) => {
    if (!models.has(file.model)) {
      const flat = new Uint8Array(await (await fetched(file.model)).arrayBuffer());
      const options = {accelerator: 'wasm', cpuOptions: {numThreads: threads}};
      models.set(file.model, await loadAndCompile(flat, options));
    }
    return models.get(file.model);
  };
}

/**
 * The files that one load of LiteRT.js runs. With threads they share its workers, as many as there
 * are CPUs, and a model that finds none left waits for ever: then each .tflite has a load of its own.
 */
function together(files, build) {
  if (build !== 'threads') return [files];
  const models = [...new Set(files.map(({model}) => model))];
  return models.map((model) => files.filter((file) => file.model === model));
}

/** What a build of LiteRT.js gives for each file; {error} where the browser does not run it. */
async function runBuild(plan, build) {
  const say = (text) => tell(`${build}: ${text}.`), rows = [];
  for (const files of together(plan.files, build)) {
    let model;
    try {
      await say('loading LiteRT.js');
      model = await load(plan, build);
    } catch (error) {
      return {build, error: String(error.message ?? error)};
    }
    const loaded = [];
    for (const file of files) {
      try {
        await say(file.name);
        loaded.push({file, images: await readImages(file), model: await model(file)});
        const replayed = file.golden ? await replay(loaded.at(-1)) : {};
        rows.push({name: file.name, ...replayed});
      } catch (error) {
        return {build, file: file.name, error: String(error.message ?? error)};
      }
    }
    const times = await measure(loaded, plan.runs, plan.warmup, say);
    times.forEach((found, index) => { rows.at(index - times.length).times = found; });
    unloadLiteRt();
  }
  return {build, rows};
}

function percentile(times, part) {
  const sorted = [...times].sort((a, b) => a - b), at = part * (sorted.length - 1);
  const low = Math.floor(at), high = Math.ceil(at);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

const duration = (ms) => ms < 1 ? `${(1000 * ms).toFixed(0)} µs` : `${ms.toPrecision(3)} ms`;

function addRow(cells, texts) {
  const row = place('rows').insertRow();
  cells.forEach((text, index) => {
    const cell = row.insertCell();
    cell.textContent = text;
    if (index >= texts) cell.className = 'number';
  });
  return row;
}

function show(result) {
  if (result.error) {
    const row = addRow([result.file ?? '', result.build, result.error], 3);
    row.cells[2].colSpan = 5;
    return;
  }
  const first = percentile(result.rows[0].times, 0.5);
  for (const row of result.rows) {
    const [low, median, high] = [0.1, 0.5, 0.9].map((part) => percentile(row.times, part));
    const replayed = row.values ? [`${row.differing} of ${row.values}`, row.largest] : ['–', '–'];
    addRow([row.name, result.build, ...replayed, duration(median),
      `${duration(low)} to ${duration(high)}`, (median / first).toFixed(2)], 2);
  }
}

/** What the page says in the end: of each build, and of all values. */
function conclude(results) {
  const rows = results.flatMap((result) => result.rows ?? []);
  const sum = (key) => rows.reduce((total, row) => total + (row[key] ?? 0), 0);
  const [values, differing] = [sum('values'), sum('differing')], verdict = place('verdict');
  const failed = results.some((result) => result.file) || !rows.length;
  verdict.className = failed || differing ? 'bad' : values ? 'good' : '';
  verdict.textContent = failed ? 'LiteRT.js does not run it: the table says why.' :
      !values ? 'Timed; no file holds golden outputs to compare with.' :
      differing ? `NOT EXACT: ${differing} of ${values} values differ.` :
      `Exact: 0 of ${values} values differ.`;
}

async function send(plan, found) {
  if (plan.report) await fetch(plan.report, {method: 'POST', body: JSON.stringify(found)});
}

async function run(plan) {
  place('facts').textContent = 'Builds of LiteRT.js: relaxed SIMD; compat, without it; threads, ' +
      `relaxed SIMD and ${plan.threads} threads. Times are of ${plan.runs} inferences after ` +
      `${plan.warmup}, the files in turn. LiteRT.js ${plan.litertjs}, ${navigator.userAgent}, ` +
      `${navigator.hardwareConcurrency} logical CPUs.`;
  const results = [];
  for (const build of plan.builds) {
    results.push(await runBuild(plan, build));
    show(results.at(-1));
  }
  conclude(results);
  await send(plan, {agent: navigator.userAgent, isolated: crossOriginIsolated, builds: results});
}

const plan = await (await fetched('./plan.json')).json();
try {
  await run(plan);
} catch (error) {
  place('verdict').className = 'bad';
  place('verdict').textContent = String(error);
  await send(plan, {error: String(error.message ?? error)});
}
