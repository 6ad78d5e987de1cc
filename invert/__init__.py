"""From a crop and its camera to a head in the generator's space."""
