"""The `thinker` model: perceive and think of all sessions, batched by the runtime's worker thread."""

import locale

locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # stubs run in the C locale, where reading a UTF-8 file fails

from pathlib import Path  # noqa: E402

from triton_models.backend import adapter as backend  # noqa: E402
from triton_models.observability.export import Exporter  # noqa: E402
from triton_models.service import settings  # noqa: E402
from triton_models.service.roles import ThinkerRole  # noqa: E402
from triton_models.service.status import Heartbeat  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        given = settings.read(settings.RoleSettings, backend.parameters(args))
        self._role = ThinkerRole.start(given)
        self._jobs = backend.JobServer(self._role.worker)
        self._heartbeat = Heartbeat(Path(given.status), "thinker", self._role.status)
        self._heartbeat.start()
        self._metrics = Exporter("thinker", self._role.status, self._role.thinker.metrics.take)
        self._metrics.start()
        backend.settle()

    def execute(self, requests):
        self._jobs.execute(requests)  # answers come later, from the worker: see backend.py

    def finalize(self):
        self._metrics.stop()
        self._heartbeat.stop()
        self._role.stop()
        self._jobs.stop()
