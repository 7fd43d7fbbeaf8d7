"""What `annotator bench` measures. Nothing here is loaded by anything else.

setup.py     what is measured: pictures and models made for the purpose, and the job that labels them
phases.py    one measurement in a process of its own: the bare loop, the worker, the whole job
engine.py    the three side by side
encode.py, decode.py, drift.py   parts: maps to PNG, heatmaps to keypoints, what reduced precision does
"""
