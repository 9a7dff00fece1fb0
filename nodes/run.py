"""One run of the sampler: from its plan, or from where an earlier one stopped, and down the ladder where it must."""

from torch import Tensor

from ..wan_core.build import measure_kernels
from ..wan_core.component_plan import resolve_decode
from ..wan_core.estimate import Knowledge, Part, RunEstimate, decode_parts, learn, likely_decode, sampling_parts
from ..wan_core.hardware import Hardware
from ..wan_core.plan import ExecutionPlan
from ..wan_core.profiles import OptimizationProfile
from ..wan_core.recovery.journal import Journal
from ..wan_core.recovery.ladder import Ladder, has_stepped_down, sample_down_the_ladder
from ..wan_core.report import Report
from ..wan_core.sample import Conditioning, SampleResult, sample
from ..wan_core.specs import T2V_A14B_TRANSFORMER, TransformerSpec, VaeSpec
from . import host, saved_runs
from .handles import ExpertsHandle
from .live import SamplerHooks


class SamplerRun:
    """What is given to the sampler, and its way to a latent."""

    def __init__(
        self, experts: ExpertsHandle, conditioning: Conditioning, samples: Tensor, hooks: SamplerHooks, report: Report
    ) -> None:
        self._experts = experts
        self._conditioning = conditioning
        self._samples = samples
        self._hooks = hooks
        self._report = report

    def sample(
        self, profile: OptimizationProfile, plan: ExecutionPlan, choice: saved_runs.Choice
    ) -> tuple[SampleResult, Journal]:
        """Sample as planned, or with less where memory runs out; `choice` says of what run."""
        hardware, spec, report = self._hardware(), self._experts.pair.spec, self._report
        known = Knowledge.of(hardware)
        self._hooks.on_phase("build")
        with report.phase("build"):
            plan = measure_kernels(plan, hardware, report)
            built = self._experts.build(plan, hardware)
        prompts = {"positive": self._conditioning.positive, "negative": self._conditioning.negative}
        pair, machine = self._experts.pair, (profile, hardware)
        journal = saved_runs.open_journal(choice, pair, plan, prompts, self._samples, machine, report)
        parts = sampling_parts(plan, spec, known, places=built.places)
        self._hooks.expect(RunEstimate(parts=(*parts, *_decode_after(profile, plan, spec, known))))
        is_whole = journal.position is None

        def attempt(lower: ExecutionPlan) -> SampleResult:
            built = self._experts.build(lower, hardware)
            return sample(
                built, lower, self._conditioning, self._samples, hooks=self._hooks, report=report, journal=journal
            )

        ladder = Ladder(profile=profile, hardware=self._hardware, spec=spec)
        tell = self._hooks.on_warning
        result = sample_down_the_ladder(attempt, plan, ladder, journal, report, host.free_device, tell)
        if is_whole and not has_stepped_down(report):
            learn(parts, report, hardware)
        return result, journal

    def _hardware(self) -> Hardware:
        return host.hardware(copies=self._experts.bytes_on_host)


def _decode_after(
    profile: OptimizationProfile, plan: ExecutionPlan, spec: TransformerSpec, known: Knowledge
) -> tuple[Part, ...]:
    """What decoding will take: what it took last, else that of the released model, whose VAE needs no connection."""
    size = plan.workload.latent_size
    remembered = likely_decode((plan.workload.batch, *size), known)
    if remembered or spec != T2V_A14B_TRANSFORMER:
        return remembered
    decode = resolve_decode(profile, known.hardware, VaeSpec(), size)
    return decode_parts(decode, VaeSpec(), (plan.workload.batch, *size), known)
