// Random runs against a model of the daemon: each subscription gets each event once and in order, or is told what is missing.
import { afterEach, beforeEach, test } from "node:test";
import { cleanUp, client, FakeSocket, reset } from "./fake.js";
import { generator, Model, play, SEED } from "./model.js";

beforeEach(reset);
afterEach(cleanUp);

const RUNS = Number(process.env.MODEL_RUNS ?? 150);

test(`${RUNS} random runs from seed ${SEED}`, async () => {
  for (let seed = SEED; seed < SEED + RUNS; seed++) {
    FakeSocket.all = [];
    const random = generator(seed);
    const model = new Model(random);
    await play(seed, { random, model, clients: [client({ WebSocket: model.Socket, queueBytes: 3000, pingMs: 1e8 })] });
  }
});
