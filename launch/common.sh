# shellcheck shell=bash
# What the programs of this folder share: options, commands that are run or only printed, Python environments.
#
# They run where people start them, so this keeps to bash 3.2, which macOS still ships: no associative arrays, and
# ${array[@]+"${array[@]}"} for arrays that may be empty.

script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${script#"$root/"}
dry_run=

# Every path in an option is relative to the repository.
cd "$root" || exit

# ---------------------------------------------------------------------------------------------- messages and options

die() {
  printf '%s: %s\n' "$program" "$*" >&2
  exit 1
}

# For mistakes on the command line.
misuse() {
  printf '%s: %s\n%s --help explains.\n' "$program" "$*" "$program" >&2
  exit 2
}

# The help is the comment at the head of the program.
print_help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$script"
}

# parse_options 'name= spot …' [--keep-unknown] -- ARGUMENT…
#
# --name=VALUE sets the variable `name`, and --spot sets `spot` to 'yes'. --help and --dry-run are always there. Words
# that are no options go to the array `words`, what follows a -- to the array `rest`. Unknown options are errors, or with
# --keep-unknown go to `rest` like all words, for programs that hand their arguments on.
parse_options() {
  local known=" ${1//$'\n'/ } " keep='' key
  shift
  if [[ $1 == --keep-unknown ]]; then
    keep=yes
    shift
  fi
  shift
  words=()
  rest=()
  while (($#)); do
    key=${1#--}
    key=${key%%=*}
    case $1 in
      --help | -h)
        print_help
        exit 0
        ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        rest+=("$@")
        return
        ;;
      --*=*)
        if [[ $known == *" $key= "* ]]; then
          printf -v "${key//-/_}" %s "${1#*=}"
        elif [[ $keep ]]; then
          rest+=("$1")
        else
          unknown_option "$1" "$known"
        fi
        ;;
      -*)
        if [[ $known == *" $key "* ]]; then
          printf -v "${key//-/_}" yes
        elif [[ $known == *" $key= "* ]]; then
          misuse "$1 takes a value, written $1=VALUE"
        elif [[ $keep ]]; then
          rest+=("$1")
        else
          unknown_option "$1" "$known"
        fi
        ;;
      *) if [[ $keep ]]; then rest+=("$1"); else words+=("$1"); fi ;;
    esac
    shift
  done
}

unknown_option() {
  local option there='--help --dry-run'
  for option in $2; do
    there+=" --$option"
  done
  misuse "unknown option $1; there are: $there"
}

# require NAME VALUE MEANING: an option that must be there.
require() {
  [[ $2 ]] || misuse "--$1 is missing: $3"
}

# For names that go into cloud resources and job files.
require_name() {
  require name "$1" "$2"
  [[ $1 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    misuse "--name=$1: use lower-case letters, digits and hyphens, with a letter first"
}

require_number() {
  [[ $2 =~ ^[0-9]+$ ]] || misuse "--$1=$2 must be a whole number"
}

# require_program PROGRAM CURE: not asked for in a dry run, which touches nothing.
require_program() {
  [[ $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not installed. $2"
}

# ------------------------------------------------------------------------------------------ commands, run or printed

# The arguments as one line from which a shell reads them back.
quote() {
  local word flag line='' escaped="'\\''"
  for word in "$@"; do
    flag=
    if [[ ! $word =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]]; then
      if [[ $word =~ ^--[-A-Za-z0-9_.]+= ]]; then
        flag=${BASH_REMATCH[0]}
      fi
      word=${word#"$flag"}
      word="$flag'${word//\'/$escaped}'"
    fi
    line+=" $word"
  done
  printf '%s' "${line# }"
}

show() {
  printf '+ %s\n' "$(quote "$@")"
}

# Runs a command, after printing it; a dry run only prints it.
run() {
  show "$@"
  [[ $dry_run ]] || "$@"
}

# Runs a command on the standard input; a dry run prints both.
feed() {
  if [[ $dry_run ]]; then
    printf "+ %s <<'END'\n%s\nEND\n" "$(quote "$@")" "$(cat)"
  else
    show "$@"
    "$@"
  fi
}

# ------------------------------------------------------------------------------------------------ Python environments

# Prints version and path if the argument is a Python that can make an environment. A name on the PATH proves nothing:
# version managers leave stubs there that only fail.
try_python() {
  "$1" -c '
import importlib.util, sys, venv
assert sys.version_info >= (3, 11)
assert importlib.util.find_spec("ensurepip") or importlib.util.find_spec("pip")
print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null
}

# Whether all requirements have wheels for this version: array-record and grain have none for later ones yet.
has_wheels() { # VERSION [PATH]
  [[ ${1%% *} =~ ^3\.1[1-4]$ ]]
}

# Version and path of the newest Python on this machine for which there are wheels; nothing when there is none.
newest_python() {
  local candidate found
  for candidate in python3 python python3.{14..11} "$HOME"/.pyenv/versions/*/bin/python; do
    found=$(try_python "$candidate") && has_wheels "$found" && printf '%s\n' "$found" || true
  done | sort -t. -k1,1n -k2,2n | tail -n 1
}

# choose_python [PATH]: version and path of the given Python, or else of python3 if it will do, or else of the newest.
choose_python() {
  local found
  if [[ $1 ]]; then
    found=$(try_python "$1") || die "$1 is not a Python of version 3.11 or newer with pip or ensurepip"
    has_wheels "$found" ||
      printf '%s: some requirements may have no wheels for Python %s, unlike 3.11 to 3.14\n' \
        "$program" "${found%% *}" >&2
  else
    found=$(try_python python3) && has_wheels "$found" || found=$(newest_python)
  fi
  [[ $found ]] || die 'no Python of version 3.11 to 3.14 with pip was found.
Install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv; macOS: brew install python@3.13; elsewhere:
pyenv or https://www.python.org/downloads) or name it: PYTHON=/path/to/python '"$program"
  printf '%s\n' "$found"
}

# install_environment DIRECTORY PYTHON EXTRAS: a virtual environment with this checkout (editable) and the extras.
#
# PYTHON may be '' (any that will do), EXTRAS too. Does nothing when the same was installed before: every extra leaves a
# stamp in the environment, a copy of all that the installation depends on.
install_environment() {
  local venv=$1 python=$2 extras=$3 chosen have='' extra stale=''
  if [[ -e $venv/bin/python ]]; then
    have=$(try_python "$venv/bin/python") || have=
  fi
  if [[ $have && $python ]]; then
    chosen=$(choose_python "$python")
    [[ ${chosen%% *} == "${have%% *}" ]] ||
      die "$venv holds Python ${have%% *}, not ${chosen%% *}: remove it, or choose another with --venv=DIRECTORY"
  elif [[ ! $have ]]; then
    [[ ! -e $venv || -e $venv/pyvenv.cfg ]] || die "$venv exists and is no virtual environment; choose another --venv"
    chosen=$(choose_python "$python")
    make_environment "$venv" "${chosen#* }"
    stale=yes
  fi
  for extra in base ${extras//,/ }; do
    [[ ! $stale ]] && environment_key "$venv" | cmp -s - "$venv/installed/$extra" || stale=yes
  done
  if [[ ! $stale ]]; then
    printf '%s is up to date\n' "$venv"
    return
  fi
  # Twice --quiet: errors only.
  run "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
    --editable ".${extras:+[$extras]}"
  [[ $dry_run ]] && return
  mkdir -p "$venv/installed"
  for extra in base ${extras//,/ }; do
    environment_key "$venv" >"$venv/installed/$extra"
  done
}

make_environment() {
  if "$2" -c 'import ensurepip' 2>/dev/null; then
    run "$2" -m venv --clear "$1"
  else # Debian without python3-venv: its pip can still put a pip into an empty environment
    run "$2" -m venv --clear --without-pip "$1"
    run "$2" -m pip --python "$1/bin/python" install --quiet --quiet --disable-pip-version-check pip
  fi
}

environment_key() {
  "$1/bin/python" -VV
  printf '%s\n' "$root"
  cat setup.py
}

# ------------------------------------------------------------------------------------------------ arguments of programs

# Those of the arguments that change the configuration, in one word (--set=KEY=VALUE) or in two (--set KEY=VALUE):
# prepare takes them as train does, and refuses a spelling that there was once.
config_arguments() {
  configuration=()
  while (($#)); do
    if [[ $1 =~ ^--?(set|config(\.[^=]*)?)(=|$) ]]; then
      configuration+=("$1")
      if [[ $1 != *=* ]] && (($# > 1)); then
        configuration+=("$2")
        shift
      fi
    fi
    shift
  done
}

# Whether data.directory names a mixture in these arguments, of which the last counts (mlm_jax/config/mixture.py). Each
# of its directories was prepared by itself before, and prepare refuses all of them at once.
names_mixture() { # ARGUMENT…
  local word directory=''
  for word in "$@"; do
    [[ ! $word =~ ^(--?set=)?data\.directory=(.*)$ ]] || directory=${BASH_REMATCH[2]}
  done
  [[ $directory == *,* && ! -d $directory ]]
}

# bucket_path gs://BUCKET/PATH DIRECTORY: where the object lies when BUCKET is mounted at DIRECTORY/BUCKET.
bucket_path() {
  case $1 in
    gs://*) printf '%s/%s' "$2" "${1#gs://}" ;;
    *) printf '%s' "$1" ;;
  esac
}

# The bucket of gs://BUCKET/PATH.
bucket_of() {
  local path=${1#gs://}
  printf '%s' "${path%%/*}"
}

# The extras of setup.py that the run needs for the buckets in its arguments, each behind a comma.
bucket_extras() { # ARGUMENT…
  [[ $* != *gs://* ]] || printf ',gcs'
  [[ $* != *s3://* ]] || printf ',s3'
}

# extras_of_run ACCELERATOR EXTRAS ARGUMENT…: the extras of setup.py for a run with these arguments, divided by commas:
# that of the accelerator, unless --extras names another; those of --extras; and what its buckets need.
extras_of_run() {
  local extras=$2
  [[ ,$extras, =~ ,(tpu|cuda12|cuda13), ]] || extras=$1${extras:+,$extras}
  shift 2
  printf %s "$extras$(bucket_extras "$@")"
}

# check_slices COUNT ARGUMENT…: a configuration that is fitted to slices (slice=2xv5e-16) is for as many as there are.
check_slices() {
  local count=$1 word fitted of_several='(^|[:,=])slice=([0-9]+)x([^,]*)' of_one='(^|[:,=])slice=([a-z][^,]*)'
  shift
  for word in "$@"; do
    if [[ $word =~ $of_several ]]; then
      fitted=${BASH_REMATCH[2]} name_of_slice=${BASH_REMATCH[3]}
    elif [[ $word =~ $of_one ]]; then
      fitted=1 name_of_slice=${BASH_REMATCH[2]}
    else
      continue
    fi
    ((fitted == count)) || misuse "the configuration is fitted to $fitted slice$( ((fitted == 1)) || printf s) \
($word), and --slices=$count: give --slices=$fitted, or slice=$( ((count == 1)) || printf %sx "$count")$name_of_slice"
  done
}

# set_blocks ARGUMENT…: prints the argument of train that lets it read rows in blocks, unless these arguments say how.
set_blocks() {
  [[ $* == *data.block_kib=* ]] || printf %s --set=data.block_kib=256
}

# require_choice NAME VALUE CHOICE…
require_choice() {
  local name=$1 value=$2 choice
  shift 2
  for choice in "$@"; do
    [[ $value != "$choice" ]] || return 0
  done
  misuse "--$name=$value must be one of: $*"
}
