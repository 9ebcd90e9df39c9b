// A raw websocket server that speaks just enough of each protocol. All frames of the events are encoded before a client comes, and are
// written as fast as the socket takes them, so the client is the bottleneck. It also serves a page for each client.
import { createHash } from "node:crypto";
import { createServer } from "node:http";

const PIECE_BYTES = 64 << 10;
const TOPIC = "jobs.status_changed";

function frame(text) {
  const body = Buffer.from(text);
  const head = body.length < 126 ? Buffer.from([0x81, body.length]) : Buffer.from([0x81, 126, body.length >> 8, body.length & 255]);
  return Buffer.concat([head, body]);
}

const EVENTS = {
  towerws: (n, payload) => `{"type":"event","position":"${n + 1}-5b0c7e9f21aa","group":"jobs","event":"status_changed","payload":${payload}}`,
  centrifuge: (n, payload) => `{"push":{"channel":"${TOPIC}","pub":{"data":${payload},"offset":${n + 1}}}}`,
  stompjs: (n, payload) => `MESSAGE\nsubscription:sub-0\nmessage-id:${n + 1}\ndestination:/topic/${TOPIC}\ncontent-type:application/json\ncontent-length:${payload.length}\n\n${payload}\0`,
};
EVENTS.bare = EVENTS.towerws;

function* texts(data) {
  for (let at = 0; at + 6 <= data.length;) {
    let size = data[at + 1] & 127, head = 2;
    if (size === 126) { size = data.readUInt16BE(at + 2); head = 4; }
    const mask = data.subarray(at + head, at + head + 4);
    const body = Buffer.from(data.subarray(at + head + 4, at + head + 4 + size));
    for (let i = 0; i < size; i++) body[i] ^= mask[i & 3];
    if ((data[at] & 15) === 1) yield body.toString();
    at += head + 4 + size;
  }
}

// What each protocol answers to a message; true: the subscription begins.
const ANSWERS = {
  towerws: (text, send) => {
    const { id, groups } = JSON.parse(text);
    if (!groups) return false;
    send(`{"type":"subscribed","id":${id},"groups_current":["${TOPIC}"],"groups_joined":["${TOPIC}"],"groups_left":[],"denied":[],"position":"0-5b0c7e9f21aa","recovered":null}`);
    return true;
  },
  centrifuge: (text, send) => {
    let begins = false;
    for (const line of text.split("\n").filter(Boolean)) {
      const { id, connect, subscribe } = JSON.parse(line);
      if (connect) send(`{"id":${id},"connect":{"client":"c1","version":"6.0.0","ping":25,"pong":true}}`);
      if (subscribe) { send(`{"id":${id},"subscribe":{"recoverable":true,"positioned":true,"epoch":"e","offset":0}}`); begins = true; }
    }
    return begins;
  },
  stompjs: (text, send) => {
    if (text.startsWith("CONNECT") || text.startsWith("STOMP")) send("CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\0");
    return text.startsWith("SUBSCRIBE");
  },
};
ANSWERS.bare = ANSWERS.towerws;

export function encoded(count, bytes) {
  const filler = "x".repeat(Math.max(0, bytes - 60));
  const pieces = {};
  for (const name in EVENTS) {
    pieces[name] = [];
    let some = [], size = 0;
    for (let n = 0; n < count; n++) {
      const payload = `{"n":${n},"status":"running","text":"${filler}"}`;
      const next = frame(EVENTS[name](n, payload));
      some.push(next);
      size += next.length;
      if (size >= PIECE_BYTES || n === count - 1) { pieces[name].push(Buffer.concat(some)); some = []; size = 0; }
    }
  }
  return pieces;
}

export function serve(pieces, files, result) {
  const server = createServer((request, response) => {
    const body = files[request.url.split("?")[0]];
    if (request.method === "POST") {
      let text = "";
      request.on("data", (part) => { text += part; }).on("end", () => { response.end(); result(text); });
    } else response.writeHead(body === undefined ? 404 : 200, { "content-type": request.url.includes(".js") ? "text/javascript" : "text/html" }).end(body);
  });
  server.on("upgrade", (request, socket) => {
    const name = request.url.slice(1);
    const key = createHash("sha1").update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    const protocol = request.headers["sec-websocket-protocol"]?.split(",")[0].trim();
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n${protocol ? `Sec-WebSocket-Protocol: ${protocol}\r\n` : ""}\r\n`);
    socket.setNoDelay(true);
    socket.on("error", () => {});
    const send = (text) => socket.write(frame(text));
    if (name === "towerws") send('{"type":"welcome","user":null,"position":"0-5b0c7e9f21aa","ping_s":20}');
    let began = false;
    socket.on("data", async (data) => {
      for (const text of texts(data)) {
        if (began || !ANSWERS[name](text, send)) continue;
        began = true;
        for (const piece of pieces[name]) {
          if (socket.destroyed) return;
          if (!socket.write(piece)) await new Promise((drained) => { socket.once("drain", drained).once("close", drained); });
        }
      }
    });
  });
  return new Promise((ready) => { server.listen(0, "127.0.0.1", () => ready(server)); });
}

if (process.argv[2] === "serve") {
  const [count, bytes] = process.argv.slice(3).map(Number);
  const { default: files } = await import(process.argv[5], { with: { type: "json" } });
  const server = await serve(encoded(count, bytes), files, (text) => process.stdout.write(`${text}\n`));
  process.stdout.write(`${server.address().port}\n`);
}
