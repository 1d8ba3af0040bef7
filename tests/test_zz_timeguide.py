import sys,time,re
sys.path.insert(0,'tests')
import test_guide as g
log=open('/tmp/guide_times.txt','w')
def wrap(name):
    f=getattr(g,name)
    def w(block,*a):
        c,t=time.process_time(),time.time()
        try: return f(block,*a)
        finally:
            what=a[0] if isinstance(a[0],str) else 'snippet'
            log.write(f"{time.process_time()-c:.2f}\t{time.time()-t:.2f}\t{block.page}:{block.line}\t{what[:150]}\n"); log.flush()
    setattr(g,name,w)
wrap('run_command'); wrap('run_snippet')
import pytest
test_everything_runs_in_one_checkout=g.test_everything_runs_in_one_checkout
checkout=g.checkout
