"""Settings of every test process, before torch is imported: one thread, no network."""

import os

# One thread each: two workers share two cores better than one with two, and results repeat to the last bit.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
