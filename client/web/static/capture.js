// What the user says and shows: a microphone and a camera, a recording, or neither; as tracks, or one unit every 160 ms.

const WIDTHS = { video: { width: { ideal: 640 }, height: { ideal: 640 }, frameRate: { ideal: 25 } } };
const VOICE = { audio: { echoCancellation: true, noiseSuppression: false, autoGainControl: true } };
const NAMES = { audio: "microphone", video: "camera" };
const AGAIN_MS = 2000; // between two looks whether a device that has gone is back

export class Capture {
  // source: camera | microphone | file | text.  onUnit(pcm Int16Array, strip Blob or null, captured ms); null: tracks are wanted,
  // which are in `given` and tell by onTracks() when they are others
  // onNotice(text): a device that is missing or has gone; empty when it is back
  static async make(context, shape, source, file, preview, onUnit, onNotice, onTracks) {
    await context.audioWorklet.addModule("/static/worklets/capture.js");
    const capture = new Capture(context, shape, preview, onUnit, onNotice, onTracks);
    try {
      await capture.open(source, file);
    } catch (error) {
      capture.close();
      throw error;
    }
    return capture;
  }

  constructor(context, shape, preview, onUnit, onNotice, onTracks) {
    this.context = context;
    this.shape = shape;
    this.preview = preview;
    this.onUnit = onUnit;
    this.onNotice = onNotice;
    this.onTracks = onTracks;
    this.given = { audio: null, video: null };
    this.quiet = false;
    this.tracks = [];
    this.closed = false;
    this.url = null;
    this.media = null; // <video> that the pictures are taken from
    if (!onUnit) return;
    this.strip = document.createElement("canvas");
    this.strip.width = shape.width;
    this.strip.height = shape.height * 4;
    this.pen = this.strip.getContext("2d", { alpha: false });
    this.pen.imageSmoothingQuality = "high";
    this.node = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 1, processorOptions: { rate: shape.sample_rate, samples: shape.samples },
    });
    this.node.connect(context.destination); // it puts out silence; unconnected it might not run
    this.node.port.onmessage = ({ data }) => (data.pcm ? this.unit(data.pcm) : this.draw(data.tick - 1));
  }

  async open(source, file) {
    if (source === "text") return this.give(this.context.createMediaStreamDestination().stream);
    if (source === "file") return this.openFile(file);
    await this.use(source === "camera" ? await this.both() : await navigator.mediaDevices.getUserMedia(VOICE));
  }

  // Asked for together, which is one question; where that fails each by itself: who has no camera can speak.
  async both() {
    try {
      return await navigator.mediaDevices.getUserMedia({ ...VOICE, ...WIDTHS });
    } catch (error) {
      const found = await Promise.allSettled([VOICE, WIDTHS].map((one) => navigator.mediaDevices.getUserMedia(one)));
      const tracks = found.flatMap(({ value }) => value?.getTracks() ?? []);
      if (!tracks.length) throw error;
      const absent = ["audio", "video"].filter((kind) => !tracks.some((track) => track.kind === kind));
      for (const kind of absent) this.onNotice(`No ${NAMES[kind]} (${error.message}).`);
      return new MediaStream(tracks);
    }
  }

  async use(stream) {
    for (const track of stream.getTracks()) {
      this.tracks.push(track);
      track.onended = () => this.lost(track.kind);
    }
    if (this.closed) return this.close();
    this.give(stream);
    if (this.onUnit && stream.getAudioTracks().length) this.context.createMediaStreamSource(stream).connect(this.node);
    if (stream.getVideoTracks().length) {
      this.preview.srcObject = stream;
      this.preview.hidden = false;
      this.media = this.preview;
      await this.preview.play();
    }
  }

  async lost(kind) {
    if (kind === "video") this.media = null; // not its last picture for ever
    this.onNotice(`The ${NAMES[kind]} has gone. It is used again when it is back.`);
    while (!this.closed) {
      await new Promise((done) => setTimeout(done, AGAIN_MS));
      try {
        if (!this.closed) await this.use(await navigator.mediaDevices.getUserMedia(kind === "audio" ? VOICE : WIDTHS));
        this.onNotice("");
        return;
      } catch { /* not yet */ }
    }
  }

  async openFile(file) {
    const media = document.createElement("video");
    this.url = URL.createObjectURL(file);
    media.src = this.url;
    media.playsInline = true;
    await media.play();
    if (this.onUnit) this.context.createMediaElementSource(media).connect(this.node);
    else this.give(media.captureStream());
    this.media = media;
  }

  give(stream) {
    for (const track of stream.getTracks()) this.given[track.kind] = track;
    this.muted = this.quiet;
    this.onTracks?.();
  }

  get hasPicture() { return this.media !== null && this.media.videoWidth > 0; }

  set muted(value) {
    this.quiet = value;
    this.node?.port.postMessage({ muted: value });
    if (this.given.audio && !this.node) this.given.audio.enabled = !value;
  }

  // Puts the present picture into place 0..3 of the strip: cropped to the model's shape around the centre.
  draw(place) {
    if (!this.hasPicture) return;
    const { width, height } = this.shape;
    const { videoWidth, videoHeight } = this.media;
    const scale = Math.min(videoWidth / width, videoHeight / height);
    const [w, h] = [width * scale, height * scale];
    this.pen.drawImage(this.media, (videoWidth - w) / 2, (videoHeight - h) / 2, w, h, 0, place * height, width, height);
  }

  unit(pcm) {
    const captured = performance.now();
    if (!this.hasPicture) { this.onUnit(pcm, null, captured); return; }
    this.strip.toBlob((blob) => this.onUnit(pcm, blob, captured), "image/jpeg", 0.9);
  }

  close() {
    if (this.node) {
      this.node.port.onmessage = null;
      this.node.disconnect();
    }
    this.closed = true;
    this.tracks.forEach((track) => track.stop());
    if (this.media && this.media !== this.preview) this.media.pause();
    if (this.url) URL.revokeObjectURL(this.url);
    this.preview.srcObject = null;
    this.preview.hidden = true;
  }
}
