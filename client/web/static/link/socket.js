// The conversation over one WebSocket: JSON, and the binary messages of page/frames.py.

const PCM16 = 1;
const JPEG = 2;
const HEAD = 16;
const MOST_BUFFERED = 256 * 1024; // bytes that may wait in the browser before units are left out

export class SocketCarrier {
  constructor(token) {
    this.token = token;
    this.left = 0; // units not sent because the network did not take them
  }

  // handlers: message(JSON), audio({unit, pcm}), video({unit, blob}), closed(WebSocket close code)
  open(hello, { message, audio, video, closed }) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const protocols = ["wan.session.v1", ...(this.token ? [`wan-token.${this.token}`] : [])];
    const socket = new WebSocket(`${scheme}://${location.host}/v1/session`, protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => this.send(hello);
    socket.onclose = ({ code }) => closed(code);
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") return message(JSON.parse(data));
      const head = new DataView(data);
      const unit = head.getUint32(4, true);
      const kind = head.getUint8(0);
      if (kind === PCM16) audio({ unit, pcm: new Int16Array(data, HEAD) });
      if (kind === JPEG) video({ unit, blob: new Blob([new Uint8Array(data, HEAD)], { type: "image/jpeg" }) });
    };
  }

  send(message) { this.socket.send(JSON.stringify(message)); }

  // One unit of the user; the pictures go first, so that they are there when the sound completes the unit.
  sendUnit(pcm, blob, captured) {
    const { socket } = this;
    if (socket.bufferedAmount > MOST_BUFFERED) { this.left++; return; }
    if (blob) socket.send(new Blob([head(JPEG, captured), blob]));
    const sound = new Uint8Array(HEAD + pcm.byteLength);
    sound.set(new Uint8Array(head(PCM16, captured)));
    sound.set(new Uint8Array(pcm.buffer), HEAD);
    socket.send(sound);
  }

  close() {
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close();
  }
}

function head(kind, time) {
  const view = new DataView(new ArrayBuffer(HEAD));
  view.setUint8(0, kind);
  view.setFloat64(8, time, true);
  return view.buffer;
}
