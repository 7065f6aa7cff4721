import sys, cProfile, pstats, time, torch
torch.set_num_threads(1)
from pathlib import Path
from streamsplit.evaluation.baselines.catalogue import method
from streamsplit.evaluation.baselines.base import Budget
import streamsplit.cli.evaluate as ce, inspect
from streamsplit.evaluation import corpus as c
name, data, upd = sys.argv[1], sys.argv[2], int(sys.argv[3])
print([n for n in dir(c) if 'load' in n.lower() or 'corp' in n.lower()])
