#!/usr/bin/env bash
# MLflow server on the head of a cluster: bash mlflow-server.sh [FOLDER] [PORT]
#
# FOLDER (~/mlflow) holds the databases of runs and of users, and the artifacts. The server listens
# on the loopback interface: drivers on the head reach it, and browsers through an SSH tunnel.
# The first start generates a password in ~/.mlflow/credentials (mode 600), where MLflow's clients
# look for one. To choose your own, write that file first:
#   [mlflow]
#   mlflow_tracking_username = admin
#   mlflow_tracking_password = ...
# MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION name another database, another storage.
set -euo pipefail
umask 077 # files for this user alone

folder=$(realpath -m "${1:-$HOME/mlflow}")
port=${2:-5000}
credentials=$HOME/.mlflow/credentials
users=$folder/users.db

mkdir -p "$folder" "$HOME/.mlflow"
exec 9>>"$folder/pid" # the running server keeps this lock, so a second `ray up` does not start another
if ! flock --nonblock 9; then
    echo "an MLflow server runs in $folder already"
    exit 0
fi
echo $$ >"$folder/pid" # for kill; exec below keeps the process id

if [[ ! -e $credentials ]]; then
    if [[ -e $users ]]; then
        echo "$users has a user, but $credentials is gone: put it back, or delete $users" >&2
        exit 2
    fi
    printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' \
        "$(python3 -c 'import secrets; print(secrets.token_hex(24))')" >"$credentials"
fi
chmod 600 "$credentials"

# Passwords are slow to check by design; MLflow checks each once a minute.
value_of() { sed -n "s/^$1 *= *//p" "$credentials"; }
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///$users
admin_username = $(value_of mlflow_tracking_username)
auth_cache_ttl_seconds = 60
INI

# In the environment: every user of the machine can read arguments.
MLFLOW_AUTH_ADMIN_PASSWORD=$(value_of mlflow_tracking_password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}

# MLflow's job processes evaluate language models; raymi does not use them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

# Foreign Host headers are refused, or a web page could reach the server through the browser's tunnel.
# Any port is allowed, as a tunnel may start at another one. One worker with threads: uvicorn kills
# one of several workers that is silent for 5 seconds, which on a busy head is any of them.
exec mlflow server --app-name basic-auth --host 127.0.0.1 --port "$port" --workers 1 \
    --allowed-hosts 'localhost:*,127.0.0.1:*' \
    --artifacts-destination "${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}"
