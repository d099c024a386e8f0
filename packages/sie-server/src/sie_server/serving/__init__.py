"""From a decoded request to ranked scores: `service` is the spine, everything else one of its steps."""
