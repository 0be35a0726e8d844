"""Flows as pictures: who talks to whom, what became of it, how long it took. Plain SVG and HTML."""

from k8sdatapath.pictures.charts import latencies, verdicts
from k8sdatapath.pictures.report import report
from k8sdatapath.pictures.service_map import ServiceMap
from k8sdatapath.pictures.tally import Tally

__all__ = ["ServiceMap", "Tally", "latencies", "report", "verdicts"]
