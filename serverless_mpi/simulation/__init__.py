"""A planner for scale: the real generators on a discrete-event model of a channel.

It counts requests, seconds and dollars. run.py plays the ranks, media.py models what a batch of
frames becomes on each channel, figures.py has the times and limits of the services with their
sources.
"""

from serverless_mpi.simulation.figures import AWS as AWS
from serverless_mpi.simulation.figures import EMULATOR as EMULATOR
from serverless_mpi.simulation.figures import LATENCIES as LATENCIES
from serverless_mpi.simulation.figures import Latency as Latency
from serverless_mpi.simulation.figures import in_region as in_region
from serverless_mpi.simulation.figures import latency_of as latency_of
from serverless_mpi.simulation.run import Forecast as Forecast
from serverless_mpi.simulation.run import forecast as forecast
