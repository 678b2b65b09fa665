"""eSpeak NG, as the system's command or, where nobody may install that, as the library in the wheel `espeakng-loader`.

Both say the same words with the same voices; versions differ in the last bits of a sample. eSpeak NG is GPL-3: it is
called here and no part of this package.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 22_050
_HEADER = 44  # bytes of the WAV header, whose lengths are unknown to a streaming espeak-ng
# From speak_lib.h of eSpeak NG 1.51.
_SYNCHRONOUS, _UTF8, _PHONEMES, _END_PAUSE, _BY_CHARACTER = 2, 0x1, 0x100, 0x1000, 1
_SPEED, _PITCH = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SpeechToolMissing(RuntimeError):
    """eSpeak NG is not installed; the message says how to install it."""


class _VoiceProperties(ctypes.Structure):
    """espeak_VOICE."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("unused", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


def speak(text: str, voice: str, pitch: int, speed: int) -> NDArray[np.int16]:
    """`text` (words or [[phonemes]]) at RATE, mono. Raises SpeechToolMissing, or RuntimeError for an unknown voice.

    voice: language and variant, 'en-us+Andrea'.  pitch: 0..99.  speed: words a minute.
    """
    if shutil.which("espeak-ng") is None:
        return _library().speak(text, voice, pitch, speed)
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", text]
    wave = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    return np.frombuffer(wave[_HEADER : len(wave) - (len(wave) - _HEADER) % 2], dtype="<i2")


@lru_cache(maxsize=1)
def _library() -> _Library:
    return _Library()


class _Library:
    """The wheel's library, which a process can initialise once."""

    def __init__(self) -> None:
        try:
            import espeakng_loader  # type: ignore[import-not-found]
        except ImportError:
            raise SpeechToolMissing(
                "espeak-ng: not found; install it with `apt-get install espeak-ng`, or without root with "
                "`pip install espeakng-loader`"
            ) from None
        self._espeak: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        rate = self._espeak.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate != RATE:
            raise RuntimeError(f"espeak-ng: expected a library that speaks at {RATE} Hz, got {rate}")
        self._heard: list[NDArray[np.int16]] = []
        self._callback = self._listener()  # kept: the library holds a pointer to it
        self._espeak.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: str, pitch: int, speed: int) -> NDArray[np.int16]:
        self._heard.clear()
        if self._espeak.espeak_SetVoiceByName(voice.encode()) != 0:
            # "en-gb" is the language of a voice and not its name.
            wanted = _VoiceProperties(languages=voice.encode())
            if self._espeak.espeak_SetVoiceByProperties(ctypes.byref(wanted)) != 0:
                raise RuntimeError(f"espeak-ng: no voice {voice!r}")
        self._espeak.espeak_SetParameter(_SPEED, speed, 0)
        self._espeak.espeak_SetParameter(_PITCH, pitch, 0)
        words = text.encode() + b"\0"
        flags = _UTF8 | _PHONEMES | _END_PAUSE
        self._espeak.espeak_Synth(words, len(words), 0, _BY_CHARACTER, 0, flags, None, None)
        self._espeak.espeak_Synchronize()
        return np.concatenate(self._heard) if self._heard else np.zeros(0, dtype=np.int16)

    def _listener(self) -> Callable[..., int]:
        def listen(wave: Any, count: int, events: int | None) -> int:
            if wave and count:
                self._heard.append(np.ctypeslib.as_array(wave, (count,)).copy())
            return 0

        return _CALLBACK(listen)
