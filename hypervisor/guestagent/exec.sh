# Runs a command in the guest: sh -c THIS vmctl DIRECTORY USER WORKDIR STDIN COMMAND...
# Its output goes through pipes, so that it is as anywhere, into files in
# DIRECTORY, which has that name once they are there and until then ends in
# ".new". STDIN is "file" where the input is one there.
d=$1 u=$2 w=$3 s=$4
shift 4
m=$(umask)
umask 077
[ "$s" = file ] || mkdir "$d.new" || exit 125
cd "$d.new" && mkfifo o e && exec 3>>out 4>>err || exit 125
[ "$s" != file ] || exec <in || exit 125
# The command alone ends at SIGTERM, and takes its time for that.
trap : TERM
(trap '' TERM; exec cat <o >&3 3>&- 4>&-) & out=$!
(trap '' TERM; exec cat <e >&4 3>&- 4>&-) & err=$!
# Not before both ends are there.
exec >o 2>e 3>&- 4>&-
mv "$d.new" "$d" || exit 125
umask "$m"
end() {
	exec >/dev/null 2>&1
	wait $out
	wait $err
	exit $1
}
if [ -n "$u" ]; then
	id -u "$u" >/dev/null || end 125
	chown "$u" /dev/fd/1 /dev/fd/2 2>/dev/null
else
	u=$(id -un)
fi
[ -n "$HOME" ] || eval "HOME=~$u"
[ -n "$USER" ] || USER=$u
[ -n "$LOGNAME" ] || LOGNAME=$u
export HOME USER LOGNAME
if [ -n "$w" ]; then
	cd -- "$w" || end 125
else
	cd -- "$HOME" 2>/dev/null || cd /
fi
if [ "$u" != "$(id -un)" ]; then
	g=$(id -g "$u")
	if setpriv --reuid="$u" --regid="$g" --init-groups true 2>/dev/null; then
		set -- setpriv --reuid="$u" --regid="$g" --init-groups "$@"
	elif command -v runuser >/dev/null; then
		set -- runuser -u "$u" -- "$@"
	else
		set -- su -s /bin/sh -c 'exec "$0" "$@"' -- "$u" "$@"
	fi
fi
# Not with what a shell says of a signal.
exec 3>&2 2>/dev/null
(exec "$@" 2>&3 3>&-)
status=$?
exec 3>&-
end $status
