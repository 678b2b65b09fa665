// Runs in the folder of openai-js: its Live or Realtime socket hears WAV files (16-bit mono, 24 kHz), a conversation each.
// node openai_driver.mjs live|realtime BASE_URL WAV,WAV TEXT...       (the texts are typed in the last)
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI } = await load("openai");
const { OpenAIRealtimeWS } = await load("openai/realtime/ws");
const { LiveWS } = await load("openai/resources/live/ws");
const [api, url, paths, ...typed] = process.argv.slice(2);
const RATE = 24000, CHUNK_MS = 20, TAIL_MS = 3000;
const sleep = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));
const instructions = "You are a friendly number tutor. Answer in English, and be brief.";
const tools = [{ type: "function", name: "get_weather", description: "The weather.", parameters: { type: "object" } }];
const client = new OpenAI({ baseURL: url, apiKey: "-" });

async function play(path, append) {
  const pcm = Buffer.concat([readFileSync(path).subarray(44), Buffer.alloc((2 * RATE * TAIL_MS) / 1000)]);
  const step = (2 * RATE * CHUNK_MS) / 1000, begin = performance.now();
  for (let place = 0; place < pcm.length; place += step) {
    append(pcm.subarray(place, place + step).toString("base64"));
    await sleep(begin + (place / 2 / RATE) * 1000 - performance.now());
  }
}

async function realtime(path, texts) {
  const socket = new OpenAIRealtimeWS({ model: "duplex" }, client);
  socket.on("error", (error) => console.log(`error: ${error.message}`));
  socket.on("response.output_audio_transcript.done", (event) => console.log(`agent: ${event.transcript}`));
  const heard = "conversation.item.input_audio_transcription.completed";
  socket.on(heard, (event) => console.log(`user: ${event.transcript}`));
  await new Promise((open) => socket.socket.on("open", open));
  socket.send({ type: "session.update", session: { type: "realtime", instructions, tools } });
  await play(path, (audio) => socket.send({ type: "input_audio_buffer.append", audio }));
  for (const text of texts) {
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    socket.send({ type: "conversation.item.create", item });
    socket.send({ type: "response.create" });
    await sleep(TAIL_MS);
  }
  socket.close();
}

async function live(path, texts) {
  const socket = new LiveWS(client);
  let said = "";
  socket.on("error", (error) => console.log(`error: ${error.message}`));
  socket.on("session.output_transcript.delta", (event) => (said += event.delta));
  socket.on("session.input_transcript.delta", (event) => console.log(`user: ${event.delta}`));
  const started = new Promise((done) => socket.on("session.started", done));
  const closed = new Promise((done) => socket.on("session.closed", done));
  const delegation = { type: "responses", responses: { model: "none", tools } };
  socket.send({ type: "session.start", session: { model: "duplex", instructions, delegation } });
  await started;
  await play(path, (audio) => socket.send({ type: "session.input_audio.append", audio }));
  for (const content of texts) {
    socket.send({ type: "session.commentary.append", content, delegation_id: null });
    await sleep(TAIL_MS);
  }
  socket.send({ type: "session.close" });
  console.log(`agent: ${said}\nclosed: ${(await closed).reason}`);
  socket.close();
}

for (const path of paths.split(",")) {
  await (api === "live" ? live : realtime)(path, paths.endsWith(path) ? typed : []);
}
