// The clock in a page: what `edgekd bench --device browser` adds to web_page.html. Times go back as integers, nanoseconds.

const GROUP = 20; // a call is timed alone where it takes so many steps of the page's clock; shorter ones are timed in groups

const memories = []; // of WebAssembly, as they are made: the runtime makes its own when it loads its first model
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(...words) {
    super(...words);
    memories.push(this);
  }
};

const now = () => performance.now();
const nanoseconds = (milliseconds) => Math.round(milliseconds * 1e6);

// The smallest step of performance.now() in milliseconds: 0.005 in an isolated page of Chromium, more in others.
function resolution() {
  let least = Infinity;
  for (let n = 0; n < 20; n++) {
    const from = now();
    let to = from;
    while (to === from) to = now();
    least = Math.min(least, to - from);
  }
  return least;
}

export function clock(sessions, frames) {
  const step = resolution();
  let parts = []; // of a call: { graph, session, given: input name -> tensor }

  // One call: from inputs in memory to outputs in memory, each read back. An input comes from the nearest graph before that has an
  // output of its name, else from what was given. marks: graph -> its milliseconds are added there.
  async function call(marks) {
    const made = {};
    for (const { graph, session, given } of parts) {
      const start = marks && now();
      const feeds = parts.length > 1 ? Object.fromEntries(session.inputNames.map((n) => [n, made[n] ?? given[n]])) : given;
      const outputs = await session.run(feeds);
      for (const name of session.outputNames) await outputs[name].getData();
      if (marks) marks[graph] = (marks[graph] ?? 0) + now() - start;
      if (parts.length > 1) Object.assign(made, outputs);
    }
  }

  // graphs: [[name, session], ...] in the order in which a call runs them; arrays: "GRAPH/INPUT".
  function prepare({ graphs }, arrays) {
    const outputs = new Set();
    parts = graphs.map(([graph, number]) => {
      const session = sessions.get(number);
      const given = {};
      for (const name of session.inputNames) {
        if (arrays[`${graph}/${name}`]) given[name] = arrays[`${graph}/${name}`];
        else if (!outputs.has(name)) throw new Error(`graph ${graph}: nothing is given for its input ${name}`);
      }
      session.outputNames.forEach((name) => outputs.add(name));
      return { graph, session, given };
    });
  }

  async function first() {
    const start = now();
    await call();
    return [{ seconds: (now() - start) / 1000 }, {}];
  }

  // Until both are reached; a call longer than four times `seconds` ends it whatever the count.
  async function warm({ seconds, count }) {
    const begin = now();
    const samples = [];
    let spent = 0;
    while ((spent < seconds || samples.length < count) && spent < 4 * seconds) {
      const start = now();
      await call();
      const end = now();
      samples.push(nanoseconds(end - start));
      spent = (end - begin) / 1000;
    }
    const later = samples.slice(Math.floor(samples.length / 2)).sort((a, b) => a - b);
    const mean = later.reduce((sum, one) => sum + one, 0) / later.length;
    const median = later[Math.floor(later.length / 2)];
    // Of calls shorter than two steps single readings say little but in their mean, which a few long ones can lift.
    const each = median >= 2 * nanoseconds(step) ? median : Math.min(mean, 2 * nanoseconds(step));
    const group = Math.max(1, Math.ceil((GROUP * nanoseconds(step)) / Math.max(each, 1)));
    return [{ nanoseconds: samples, group, step: nanoseconds(step) }, {}];
  }

  // At least `count` calls, in whole groups, after `settle` that are not told. A group is one sample: the mean of its calls, since
  // between two readings of the clock nothing is seen of single ones. calls: how many were made.
  async function time({ settle, count, group }) {
    for (let n = 0; n < settle; n++) await call();
    const told = { nanoseconds: [], marks: {} };
    const several = parts.length > 1;
    const begin = now();
    for (told.calls = 0; told.calls < count; told.calls += group) {
      const sums = several ? {} : null;
      const start = now();
      for (let n = 0; n < group; n++) await call(sums);
      told.nanoseconds.push(nanoseconds((now() - start) / group));
      for (const [graph, sum] of Object.entries(sums ?? {})) (told.marks[graph] ??= []).push(nanoseconds(sum / group));
    }
    const wall = nanoseconds(now() - begin);
    return [{ ...told, wall, at: nanoseconds(performance.timeOrigin + begin), hidden: document.hidden }, {}];
  }

  // The size of the runtime's heap, which never shrinks: the most that it held, inputs and outputs included, GPU memory not.
  // Not measureUserAgentSpecificMemory(): it waits a minute for the runtime's threads, which sleep where they cannot answer.
  function memory() {
    return [{ bytes: memories.length ? memories.reduce((sum, one) => sum + one.buffer.byteLength, 0) : null }, {}];
  }

  // A page of its own within this one, for one model: it shares the browser's tab, and neither memory nor runtime.
  async function enter({ number, threads }) {
    const frame = document.createElement("iframe");
    frame.src = `?threads=${threads}&frame`;
    document.body.append(frame);
    for (let n = 0; !frame.contentWindow?.obey; n++) {
      if (n === 1200) throw new Error("a page within the page did not load within 60 s");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    frames.set(number, frame.contentWindow);
  }

  function leave({ number }) {
    frames.get(number)?.frameElement.remove();
    frames.delete(number);
  }

  // What the page knows of its clock and of the device around it.
  async function facts() {
    const wanted = ["architecture", "model", "platformVersion"];
    const { platform, ...rest } = (await navigator.userAgentData?.getHighEntropyValues(wanted)) ?? {};
    const { architecture, model, platformVersion } = rest;
    return [{ step: nanoseconds(step), platform, platformVersion, architecture, model }, {}];
  }

  if (window === top) attend();
  return { prepare, first, warm, time, memory, enter, leave, facts };
}

// The page that a person opened: says when it goes, and keeps the screen on.
function attend() {
  document.title = document.querySelector("h1").textContent = "edgekd bench";
  document.querySelector("p").textContent = "Models are timed in this page. Leave it open and in front until edgekd bench is done.";
  navigator.wakeLock?.request("screen").catch(() => {}); // a screen that goes off would stop the page
  addEventListener("pagehide", () => {
    const text = JSON.stringify({ id: -1, error: "the page was closed, or another was opened in its place" });
    const body = new Uint8Array(4 + text.length);
    new DataView(body.buffer).setUint32(0, text.length, true);
    body.set(new TextEncoder().encode(text), 4);
    navigator.sendBeacon("result", body);
  });
}
