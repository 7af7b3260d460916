"""Whether a real NPU can be used here, and what to do where not.

``facts`` gathers what is so on this system and judges nothing; ``checks`` are pure rules from facts
to lines; ``report`` shows them. Only ``facts`` touches the machine.
"""
