"""What lightpeft writes under a name that somebody chose; a new kind of output gets a row here."""

from enum import StrEnum


class Output(StrEnum):
    """A kind of file or folder, in words; an older output is replaced only by one of the same kind."""

    SCORES = "scores"
    PLAN = "a plan"
    PREDICTIONS = "predictions"
    RESULT = "a result"
    PAGE = "a report's page"
    PICTURE = "a picture"
    FINDINGS = "the findings of a scan"
    CELL = "a measured cell"
    DATA = "a data file"
    CARD = "a model card"
    LIGHT = "a light checkpoint"
    MERGED = "a merged model"
    STOCK = "an ordinary checkpoint"
    ONNX = "a model in ONNX"
    GGUF = "a model in GGUF"
    PROGRAM = "a program of torch.export"
    FULL_ADAPTER = "a full-size adapter"
    PLAIN = "a plain adapter"
    MODULE = "a module of the audit"
    COPY = "an own copy"
