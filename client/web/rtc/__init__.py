"""WebRTC: Opus and pictures as media, the events of the Live and Realtime APIs on a data channel."""
