"""The `duplex` model, the only public one: requests of the wire contract go into `runtime/duplex`.

Responses leave through the senders of their requests.
"""

import locale
import sys

locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # stubs run in the C locale, where reading a UTF-8 file fails
sys.path.insert(0, __file__.rpartition("/repository/")[0] + "/tree")  # the code that started this server

from triton_models.backend import adapter as backend  # noqa: E402
from triton_models.observability.export import Exporter  # noqa: E402
from triton_models.runtime.messages import SessionError  # noqa: E402
from triton_models.service import settings  # noqa: E402
from triton_models.service.duplex_service import DuplexService  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        backend.begin()
        run = settings.load()
        callers = [backend.Caller(stage, run.key) for stage in run.stages]
        self._service = DuplexService(run, callers[0], callers[-1])
        self._service.start()
        self._metrics = Exporter("duplex", self._service.status, self._service.metrics.take)
        self._metrics.start()
        backend.settle()

    def execute(self, requests):
        for request in requests:
            reply = backend.TritonReply(request.get_response_sender())
            try:
                self._service.serve(backend.read_unit(request), reply)
            except Exception as error:  # a request that gets no answer hangs its client for ever
                reply.fail(SessionError("INTERNAL", f"{type(error).__name__}: {error}"))
                reply.finish()

    def finalize(self):
        self._metrics.stop()
        self._service.stop()
