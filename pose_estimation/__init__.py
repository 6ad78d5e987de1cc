"""From a photo to a face, its crop, its camera and its mask."""
