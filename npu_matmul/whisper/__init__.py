"""The Whisper encoder: from 16 kHz audio to encoder states, its products made by npu-matmul."""
