// What tests/kit/js_client.py runs in Node and in pages: a client that writes everything that it gets, one value a line.
export function follow(connect, { url, groups, options = {}, tokens = [], shelf, WebSocket }, write) {
  let given = 0;
  if (tokens.length) {
    options.token = async () => {
      const [token, lastsMs] = tokens[Math.min(given++, tokens.length - 1)];
      write({ token: given });
      return lastsMs ? { token, expiresAt: Date.now() + lastsMs } : token;
    };
  }
  if (shelf) options.store = { get: () => sessionStorage.getItem(shelf), set: (position) => sessionStorage.setItem(shelf, position) };
  const plain = (error) => error && { code: error.code, message: error.message, status: error.status };
  const client = connect(url, {
    ...options,
    ...(WebSocket && { WebSocket }),
    onstate: ({ state, user, reason }) => write({ state, user, reason: plain(reason) }),
    onerror: (error) => write({ error: plain(error) }),
  });
  const keep = (item) => write({ item });
  client.subscribe(groups, { event: keep, subscribed: keep, recovered: keep, stale: keep, gap: keep, denied: keep });
  return client;
}

if (globalThis.process?.versions?.node) {
  const { connect } = await import("../../clients/js/towerws.js");
  const config = JSON.parse(process.argv[2]);
  if (config.ws) config.WebSocket = (await import(config.ws)).default;
  const client = follow(connect, config, (line) => process.stdout.write(`${JSON.stringify(line)}\n`));
  process.stdin.on("end", () => client.close()).resume();
}
