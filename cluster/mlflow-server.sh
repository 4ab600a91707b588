#!/usr/bin/env bash
# MLflow's server of a cluster, on its head: bash mlflow-server.sh [FOLDER] [PORT]
#
# FOLDER (~/mlflow) holds the databases of runs and of users, and the artifacts. The server answers
# on the loopback interface alone: to drivers on the head and to whoever has an SSH tunnel there.
# The first start makes a password and leaves it in ~/.mlflow/credentials (mode 600), where MLflow's
# clients look for one. To have your own, write that file before:
#   [mlflow]
#   mlflow_tracking_username = admin
#   mlflow_tracking_password = ...
# MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION name another database, another storage.
set -euo pipefail
umask 077 # what is written here is for this user alone

folder=$(realpath -m "${1:-$HOME/mlflow}")
port=${2:-5000}
credentials=$HOME/.mlflow/credentials
users=$folder/users.db

mkdir -p "$folder" "$HOME/.mlflow"
exec 9>>"$folder/pid" # the server keeps it locked: a second `ray up` leaves a running one alone
if ! flock --nonblock 9; then
    echo "an MLflow server runs in $folder already"
    exit 0
fi
echo $$ >"$folder/pid" # for kill; the server takes this process over

if [[ ! -e $credentials ]]; then
    if [[ -e $users ]]; then
        echo "$users has a user, but $credentials is gone: put it back, or delete $users" >&2
        exit 2
    fi
    printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' \
        "$(python3 -c 'import secrets; print(secrets.token_hex(24))')" >"$credentials"
fi
chmod 600 "$credentials"

# A password is slow to check, on purpose: once a minute is enough of it.
value_of() { sed -n "s/^$1 *= *//p" "$credentials"; }
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///$users
admin_username = $(value_of mlflow_tracking_username)
auth_cache_ttl_seconds = 60
INI

# In the environment and not in arguments, which every user of the machine can read.
MLFLOW_AUTH_ADMIN_PASSWORD=$(value_of mlflow_tracking_password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}

# MLflow's own jobs judge answers of language models: a second process that nothing here needs.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

# Foreign Host headers are refused: a web page could otherwise reach the server through a browser
# that has a tunnel. Any port, as a tunnel may begin at another one. One worker, which has threads:
# several are watched by uvicorn, which kills one that is silent for 5 seconds, and on a busy head
# that is any of them, again and again, before they have started.
exec mlflow server --app-name basic-auth --host 127.0.0.1 --port "$port" --workers 1 \
    --allowed-hosts 'localhost:*,127.0.0.1:*' \
    --artifacts-destination "${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}"
