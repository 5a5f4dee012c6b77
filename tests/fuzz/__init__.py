# SPDX-License-Identifier: Apache-2.0
"""Differential fuzzing: tests/model and the programs get the same frames.

| file            | subject                                                        |
|-----------------|----------------------------------------------------------------|
| `states.py`     | node states, drawn by hypothesis                               |
| `builder.py`    | headers as bytes, fast                                         |
| `dice.py`       | chances, and addresses of a state                              |
| `packets.py`    | IP packets between two of them                                 |
| `guests.py`     | what a sandbox sends, its questions above all                  |
| `wire.py`       | what the underlay brings                                       |
| `traffic.py`    | from a state and a seed, frames: valid, odd, damaged           |
| `under_test.py` | the real programs: a state in their maps, a frame through them |
| `compare.py`    | a batch through both; what differs                             |
| `shrink.py`     | the smallest state and frame that still differ                 |
| `planted.py`    | bugs, to see whether they are found                            |
| `__main__.py`   | `script/fuzz`                                                  |
"""
