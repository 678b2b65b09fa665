"""A stage: the thinker, the performer or both on one device, for jobs of the `duplex` model alone."""

import locale
import sys

locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # stubs run in the C locale, where reading a UTF-8 file fails
sys.path.insert(0, __file__.rpartition("/repository/")[0] + "/tree")  # the code that started this server

from pathlib import Path  # noqa: E402

from triton_models.backend import adapter as backend  # noqa: E402
from triton_models.observability.export import Exporter  # noqa: E402
from triton_models.service import settings  # noqa: E402
from triton_models.service.stage import Stage  # noqa: E402
from triton_models.service.status import Heartbeat  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        backend.begin()
        run = settings.load()
        self._stage = Stage.of(run.stages[args["model_name"]], run.key)
        self._jobs = backend.JobServer(self._stage.submit, run.key)
        self._stage.start()
        parts = self._stage.parts
        self._heartbeat = Heartbeat(
            Path(run.status), {name: part.status for name, part in parts.items()}, self._stage.reap
        )
        self._heartbeat.start()
        self._metrics = [Exporter(name, part.status, part.metrics.take) for name, part in parts.items()]
        for exporter in self._metrics:
            exporter.start()
        backend.settle()

    def execute(self, requests):
        self._jobs.execute(requests)  # answers come later, from the workers

    def finalize(self):
        for exporter in self._metrics:
            exporter.stop()
        self._heartbeat.stop()
        self._stage.stop()
        self._jobs.stop()
