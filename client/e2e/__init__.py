"""What a person feels: from the end of a word at the microphone to the first sound at the loudspeaker, in Chromium."""
