#!/bin/sh
# Train and compare the settings in the tables of sections 3, 4, 6 and 7 of docs/evidence.md:
#   benchmarks/evidence.sh BENCH FOLDER [JOBS]
# BENCH has night/ (in Market-1501's layout) and aux/ (bright images). JOBS trainings (default 1) run side by side; 14 fit
# on one GPU. Each setting is one `nrsrd ablation` and one `nrsrd compare`, which writes FOLDER/SETTING.json. If the script
# is run again, it continues. benchmarks/gain.py plots the results. EPOCHS=1 SEEDS=1 is a quick test of the script.
[ $# -ge 2 ] || { echo "usage: benchmarks/evidence.sh BENCH FOLDER [JOBS]" >&2; exit 2; }
mkdir -p "$2" && bench=$(cd "$1" && pwd) && out=$(cd "$2" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
nrsrd=.venv/bin/nrsrd jobs=${3:-1} epochs=${EPOCHS:-15} config=configs/demo.py
bright=--config.data.brighten=0.4

for name in backbone backbone-bright-and-dark; do
  [ -e "$out/$name" ] || $nrsrd convert demo/$name.pth --output "$out/$name" >/dev/null || exit
done
$nrsrd train --config $config:teacher --config.data.root="$bench/aux" --config.init.checkpoint="$out/backbone" \
  --workdir "$out/teacher" || exit

# Arguments: name, seeds, rows (NAME=VARIANT,… separated by spaces), options.
setting() {
  name=$1 seeds=${SEEDS:-$2} rows=$3
  shift 3
  methods= given=
  for row in $rows; do
    given="$given --row $row" runs=
    for seed in $(seq 0 $((seeds - 1))); do runs="$runs,$out/$name/${row%%=*}-seed$seed"; done
    methods="$methods ${row%%=*}=${runs#,}"
  done
  # The lists of rows and methods must be split at spaces.
  # shellcheck disable=SC2086
  $nrsrd ablation --config $config --table none $given --seeds "$seeds" --jobs "$jobs" --workdir "$out/$name" \
    --config.data.root="$bench/night" --config.aux.bright_root="$bench/aux" --config.teacher.checkpoint="$out/teacher" \
    --config.init.checkpoint="$out/backbone" --config.train.epochs="$epochs" --config.train.save_every=1000 "$@" || exit
  # shellcheck disable=SC2086
  $nrsrd compare $methods --config $config:baseline --config.data.root="$bench/night" --by identity \
    --output "$out/$name.json" || exit
}

three="baseline=baseline mdl=mdl nrsrd=nrsrd"
six="baseline=baseline nra=nra mdl=mdl nra_mdl=nra_mdl srd=srd nrsrd=nrsrd"
setting table2 5 "$six"
setting table2-brightened 5 "$six" $bright
for people in 20 40 100; do
  # Fewer people train for more epochs, so that all train for about the same number of steps.
  held=$(awk "BEGIN {print 1 - $people / 200}") long=$((epochs * 200 / people))
  setting people$people 3 "$three" --config.data.holdout="$held" --config.train.epochs=$long
  setting people$people-brightened 3 "$three" --config.data.holdout="$held" --config.train.epochs=$long $bright
done
for long in 5 45; do
  setting epochs$long 3 "$three" --config.train.epochs=$long
  setting epochs$long-brightened 3 "baseline=baseline mdl=mdl" --config.train.epochs=$long $bright
done
for init in dark random; do
  weights=
  [ $init = random ] || weights=$out/backbone-bright-and-dark
  setting backbone-$init 3 "$three" --config.init.checkpoint="$weights"
  setting backbone-$init-brightened 3 "$three" --config.init.checkpoint="$weights" $bright
done
strong=loss.distill=30,loss.temperature=4
setting factors 1 "nrsrd=nrsrd lambda5_1=nrsrd,loss.distill=1 lambda5_5=nrsrd,loss.distill=5 lambda5_30=nrsrd,loss.distill=30
  lambda5_100=nrsrd,loss.distill=100 t_4=nrsrd,$strong nckd_none=nrsrd,$strong,loss.nckd_weight=none
  nra_0.1=nrsrd,norm_ratio.init=0.1 nra_5=nrsrd,norm_ratio.init=5 maet=nrsrd,degradation.preset=maet
  relation=nrsrd,loss.relation=30"

# Section 7: images of 64×32, brightened, and a teacher of that size.
small="--config.image_size=64,32 $bright"
# shellcheck disable=SC2086
$nrsrd train --config $config:teacher --config.data.root="$bench/aux" --config.init.checkpoint="$out/backbone" \
  --workdir "$out/teacher-small" $small || exit
strong=$strong,loss.nckd_weight=none flat=loss.spread_real=0,loss.spread_syn=0
# A curriculum must end before the training does: 8 of 15 epochs, and none with EPOCHS=1.
curriculum=aux.curriculum_epochs=$((epochs * 8 / 15))
# shellcheck disable=SC2086
setting small 3 "baseline=baseline nrsrd=nrsrd consistent_1=nrsrd,loss.consistency=1 curriculum=nrsrd,$curriculum
  strong=nrsrd,$strong consistent_10=nrsrd,loss.consistency=10 nrsrd_flat=nrsrd,$flat strong_flat=nrsrd,$strong,$flat
  baseline_flat=baseline,$flat strong_consistent_1=nrsrd,$strong,loss.consistency=1
  strong_curriculum=nrsrd,$strong,$curriculum strong_consistent_10=nrsrd,$strong,loss.consistency=10
  mdl_flat=mdl,$flat mdl=mdl" --config.teacher.checkpoint="$out/teacher-small" $small
