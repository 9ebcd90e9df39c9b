// Events a second that each client handles, in Node and in headless Chromium, and the size of each. `make bench-js` runs it.
//
// node bench.mjs [EVENTS [ROUNDS [BYTES]]]
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { CLIENTS } from "./clients.mjs";

const [events = 100_000, rounds = 7, bytes = 300] = process.argv.slice(2).map(Number);
const HERE = import.meta.dirname;
const DEADLINE_MS = 120_000;
const folder = await mkdtemp(join(tmpdir(), "towerws-bench-"));
const flags = Number(process.versions.node.split(".")[0]) < 22 ? ["--experimental-websocket"] : [];

async function bundled(contents) {
  const { outputFiles: [file] } = await build({ stdin: { contents, resolveDir: HERE }, bundle: true, minify: true, format: "esm", target: "es2022", write: false, legalComments: "none" });
  return file.text;
}

const median = (values) => values.toSorted((one, other) => one - other)[values.length >> 1];
const ended = [];

// The lines of a process, one at a time.
function lines(command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "ignore"] });
  ended.push(() => child.kill("SIGKILL"));
  const waiting = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    let timer;
    const late = new Promise((_, fail) => { timer = setTimeout(() => fail(new Error(`${command} ${args[0]}: nothing within ${DEADLINE_MS} ms`)), DEADLINE_MS); });
    try {
      const { value, done } = await Promise.race([waiting.next(), late]);
      if (done) throw new Error(`${command} ${args.join(" ")}: it ended`);
      return value;
    } finally { clearTimeout(timer); }
  };
  return { child, next };
}

try {
  const files = { "/measure.js": await bundled(`export { measure } from "./clients.mjs";`) };
  const sizes = {};
  for (const [name, source] of Object.entries(CLIENTS)) {
    files[`/${name}.js`] = await bundled(source);
    files[`/page-${name}`] = `<!doctype html><script type="module">
      import { measure } from "/measure.js";
      import { start } from "/${name}.js";
      const told = await measure(start, \`ws://\${location.host}/${name}\`, ${events}).catch((error) => error.message);
      await fetch("/result", { method: "POST", body: told });
    </script>`;
    sizes[name] = gzipSync(files[`/${name}.js`], { level: 9 }).length;
    await writeFile(join(folder, `${name}.mjs`), files[`/${name}.js`]);
  }
  await writeFile(join(folder, "measure.mjs"), files["/measure.js"]);
  await writeFile(join(folder, "files.json"), JSON.stringify(files));
  await writeFile(join(folder, "run.mjs"), `
    const [, , name, url, count] = process.argv;
    const { measure } = await import("./measure.mjs");
    const { start } = await import(\`./\${name}.mjs\`);
    console.log(await measure(start, url, Number(count)));
    process.exit(0);`);

  const server = lines(process.execPath, [join(HERE, "server.mjs"), "serve", events, bytes, join(folder, "files.json")]);
  const port = await server.next();
  const worlds = {
    Node: async (name) => {
      const run = lines(process.execPath, [...flags, "--no-warnings", join(folder, "run.mjs"), name, `ws://127.0.0.1:${port}/${name}`, events]);
      return Number(await run.next());
    },
    Chromium: async (name) => {
      const browser = spawn("chromium", ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", `--user-data-dir=${join(folder, "profile")}`, `http://127.0.0.1:${port}/page-${name}`], { stdio: "ignore" });
      const gone = new Promise((done) => { browser.once("close", done); });
      ended.push(() => browser.kill("SIGKILL"));
      try { return Number(await server.next()); } finally { browser.kill("SIGTERM"); await gone; }
    },
  };
  console.log(`${events} events of ${bytes} bytes, medians of ${rounds} alternating rounds, Node ${process.versions.node}`);
  for (const [world, run] of Object.entries(worlds)) {
    const rates = Object.fromEntries(Object.keys(CLIENTS).map((name) => [name, []]));
    for (let round = 0; round < rounds; round++) {
      for (const name in rates) {
        const rate = await run(name);
        if (!(rate > 0)) throw new Error(`${name} in ${world}: ${rate}`);
        rates[name].push(rate);
      }
    }
    for (const name in rates) {
      const times = median(rates.towerws.map((rate, round) => rate / rates[name][round]));
      const spread = rates[name].map((rate) => Math.round(rate / 1000));
      console.log(`${world.padEnd(9)} ${name.padEnd(11)} ${(median(rates[name]) / 1000).toFixed(0).padStart(5)} k/s   towerws is ${times.toFixed(2).padStart(5)} times as fast   (${Math.min(...spread)} to ${Math.max(...spread)} k/s)`);
    }
  }
  for (const name in sizes) if (name !== "bare") console.log(`size      ${name.padEnd(11)} ${String(sizes[name]).padStart(6)} bytes, minified and compressed   ${(sizes[name] / sizes.towerws).toFixed(2)} times ours`);
} finally {
  for (const end of ended) end();
  await rm(folder, { recursive: true, force: true });
}
