"""Synthetic heads: parametric human heads rendered with exactly known cameras, the data of the embedded prior.

From a bundle of MakeHuman's CC0 assets (`assets.py` builds it) and two numbers, a seed and the number of the head,
comes everything: parameters (`sampling.py`), geometry (`body.py`, `hair.py`, `glasses.py`), skin (`skin.py`), light
(`lighting.py`), cameras (`cameras.py`), pictures (`render.py`). `dataset.py`, `evalset.py` and `sheet.py` write them;
`python -m headlift.prior.synthetic` is their command line.

Frames and units: MakeHuman's rest frame is in decimetres, y up, the face towards +z, the crown at y = 8.5. The
world is EG3D's: y up, the face towards +z, the head around the origin, one unit is 0.396 m; a head is brought there by
its eyes and mouth. Cameras have OpenCV axes. Angles are radians, +yaw moves the camera to +x, +pitch up.
"""
