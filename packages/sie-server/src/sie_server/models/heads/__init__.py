"""The parts that read a backbone out: hidden states → logits or vectors, in fp32."""
