"""Mannequins: generated pictures of people with exact truth, and the small models that are trained on them.

skeleton.py    bones, joint limits, poses -> joints
looks.py       clothes, colours, hair -> paints
body.py        joints and paints -> solids, keypoints
shapes.py      capsules and ellipsoids, and where rays meet them
scene.py       bodies on the ground before a camera, and the view of them
background.py  room, clutter, shadows
render.py      scene and view -> picture and truth
corpus.py      pictures as files, with a manifest and a table of the truth

networks.py    Sapiens v1 and RTMDet at nano size, their files
samples.py     what the networks see, and its truth
losses.py, detection.py   what is made small
lessons.py     the stages of training
train.py       python -m annotator.mannequin.train
metrics.py, evaluate.py   how right labels are
"""
